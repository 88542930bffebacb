"""The adapter of supervisord: its configuration, its plugin, the client of its socket, and its processes."""
