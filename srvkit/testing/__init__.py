"""For tests of handlers: conversations in memory, live servers, and the fixtures that pytest finds.

Must not know the command line, nor how processes are supervised; servers are started as any program would.
"""
