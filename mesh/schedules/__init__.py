"""Schedules: timed tasks, once per cluster. The user's declarations, and the contract that an engine implements."""
