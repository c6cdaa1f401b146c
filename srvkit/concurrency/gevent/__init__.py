"""The gevent model: the mixin, its hub, and sockets that let other greenlets run while they wait.

Must not know the other models. gevent is imported when a server begins to serve, so everything but `model`
is imported late.
"""
