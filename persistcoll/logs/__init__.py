"""The log, and its consumers."""
