"""The queues: classes with the interface of ``queue.Queue``, each over a store."""
