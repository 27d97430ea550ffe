"""Behaviour that every container shares; touches no disk and no database."""
