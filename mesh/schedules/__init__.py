"""Schedules: at a time, once per cluster. What users declare, and the contract that an engine fulfils."""
