"""Engines: storage of durable data behind the contracts of leases, queues, jobs, events, state, schedules and locks."""
