"""Faults against a real mesh, and proof from the recorded history that its promises held. See docs/testing.md."""
