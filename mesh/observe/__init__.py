"""What runs on this host now: readiness, resource usage, logs, and the data of `mesh top`."""
