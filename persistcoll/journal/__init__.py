"""The file queue: a journal in chunk files, cursors over it, and the queue store made of both."""
