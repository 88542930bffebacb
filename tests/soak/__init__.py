"""A mesh under mixed load for a long time: whether anything grows that should not. See docs/testing.md."""
