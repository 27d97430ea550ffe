"""The queues: faces of queue.Queue over any store."""
