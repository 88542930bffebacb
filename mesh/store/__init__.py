"""The store: the process that owns the files of the embedded engine."""
