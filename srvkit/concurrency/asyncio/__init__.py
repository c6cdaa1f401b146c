"""The asyncio model: the mixin, its loop, and what stands between a coroutine and its connection.

Must not know the other models, but for message handlers, which run as under `event`. asyncio is imported
when a server begins to serve, so everything but `model` is imported late.
"""
