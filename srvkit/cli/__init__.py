"""The commands, one module per group.

Must not know how anything is done: it asks the floors below, prints what they say, and ends with a status.
"""
