"""Authentication at the gateway: who sent a request, and whether its route lets that caller in.

Owns: nothing here. Leaves to others: the contract of a method (contract), the methods and their order (registry), the
concern that uses them (concern), each method (one module each), roles and principals behind the gateway (mesh.calls).
"""
