"""Changing what runs on this host: up, down, rolls of a release, scaling, and the lock that serializes them."""
