"""Sockets and bytes: addresses, listeners, connections, TLS, the event loop.

Must not know servers, handlers, models or configuration files.
"""
