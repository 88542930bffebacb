"""CURVE: the keys of a process, the keys that it trusts, and authentication of both ends of a link."""
