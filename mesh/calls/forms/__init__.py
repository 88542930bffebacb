"""HTML forms: parsed by the worker from the client stream of a call.

Owns: nothing here. Leaves to others: declarations (declared), the parser (parsing), parts as a handler reads them
(multipart), fields and files as parameters (fields, files), the handler's call (binding), limits and errors (errors).
"""
