"""The converters of text, which workers use for the fields of forms, under the name that the gateway uses.

Owns: nothing; re-exports only. They are in calls.text_values.
"""

from mesh.calls.text_values import Convert, convert, converter, is_bytes, is_many, resolve

__all__ = ["Convert", "convert", "converter", "is_bytes", "is_many", "resolve"]
