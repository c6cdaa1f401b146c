"""What others may add: the hooks, and how plugins are found, imported and asked what they offer.

Must not know the configuration's grammar, processes or the command line; pluggy stays inside.
"""
