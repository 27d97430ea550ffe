"""Calls of the file system: the only package that writes, syncs, renames, unlinks and locks files."""
