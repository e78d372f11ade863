"""Which route takes a request, and which routes take the same requests."""
