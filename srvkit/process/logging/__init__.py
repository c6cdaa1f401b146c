"""The log of a process: where it goes, how a line looks, what plugins may not do to it.

Must not know: what is logged, and by whom.
"""
