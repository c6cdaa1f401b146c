"""From TOML text to server classes: reads, checks, collects every problem at once, and composes.

Must not know processes, signals or the command line.
"""
