"""Tasks: durable background work. The user's API, and the contract that an engine implements."""
