"""Where durable data lives: engines behind the contracts of tasks, events, state, schedules and locks."""
