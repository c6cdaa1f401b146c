"""How many requests at once: one mixin per file or folder, to stand in front of a server class.

Must not know what a connection carries, nor the configuration; servers are known by their steps only.
"""
