"""Handlers that are ready to use, each file a plugin; installed as the package `srvkit_handlers`."""
