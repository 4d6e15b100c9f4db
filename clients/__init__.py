"""Clients of the OpenAI-compatible API. They speak HTTP and import nothing of the server."""
