"""Observability of a process: traces, metrics, logs."""
