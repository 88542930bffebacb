"""Input by chance for everything that reads what others wrote. See docs/testing.md."""
