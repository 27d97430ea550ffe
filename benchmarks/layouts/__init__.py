"""Ways to lay out the messages of a queue in tables of SQLite, each with the statements that it needs.

``python -m benchmarks.message_layouts`` measures them, and ``docs/explanation/message-store-layout.rst`` says
what follows from the numbers.
"""
