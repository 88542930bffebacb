"""Engines: storage of durable data behind the contracts of tasks, events, state, schedules and locks."""
