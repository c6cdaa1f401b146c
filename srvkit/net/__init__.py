"""Sockets and bytes: addresses, listeners, connections, framings, readiness.

Must not know servers, handlers, models or configuration files.
"""
