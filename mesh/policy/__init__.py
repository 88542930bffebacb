"""When to wait, whom to choose, how often to retry, how much to take on: pure, with time and chance passed in."""
