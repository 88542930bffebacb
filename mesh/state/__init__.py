"""State: keys and values that outlive processes. The user's API, and the contract that an engine implements."""
