"""Queues of records with states, and dicts, in SQLite databases."""
