"""Stores in memory: the models that the laws are tried on first."""
