"""The process that owns the sockets and looks after all others: reloads, replaces, answers operators.

Must not know: plugins, handlers and models, of which it imports none; what a worker does inside.
"""
