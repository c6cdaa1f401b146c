"""Handlers that are ready to use, each file a plugin; installed as the package `srvkit_handlers`.

PYTEST_DONT_REWRITE: they may be loaded before pytest comes.
"""
