"""What callers do about services that are slow, fail, or are overloaded: one module for each policy.

See docs/resilience.md. The state machines are in mesh.policy; a new policy is a module here, and a line in `registry`.
"""
