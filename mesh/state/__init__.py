"""State: keys and values that outlive processes. What users call, and the contract that an engine fulfils."""
