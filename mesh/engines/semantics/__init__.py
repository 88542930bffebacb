"""What every engine does in the same way: pure rules, without I/O, loop or clock; `now` is passed in.

An engine of its own calls them instead of repeating them, and the contract suites hold it to them.
"""
