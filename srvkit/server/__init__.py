"""Server classes, handlers, and the life of one connection from accepting it to closing it.

Must not know how many are handled at once, nor plugins and the configuration.
"""
