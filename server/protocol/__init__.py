"""The wire format, one module per endpoint family.

Requests are pydantic models: strict, so that `"2"` and `true` are not numbers. Responses are
msgspec structs: the server makes thousands a second, and they need no checking.
"""
