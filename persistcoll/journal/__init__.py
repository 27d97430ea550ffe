"""Files: an append-only journal in chunk files, cursors over it, and the FIFO made of both."""
