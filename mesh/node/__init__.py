"""The endpoint of one process in the mesh: the verbs for calls, events and durable work."""
