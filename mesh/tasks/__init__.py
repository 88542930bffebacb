"""Tasks: do this later, surely. What users call, and the contract that an engine fulfils."""
