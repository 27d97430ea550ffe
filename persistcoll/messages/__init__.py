"""The faces of message queues."""
