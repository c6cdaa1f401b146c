"""The process that serves: how it becomes a worker, runs its server, and answers to who has begun it.

Must not know: the supervisor, and what there is of other workers.
"""
