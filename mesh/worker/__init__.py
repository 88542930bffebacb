"""The process that runs services: its life from start to drain, its tasks, and the watchdog of its loop."""
