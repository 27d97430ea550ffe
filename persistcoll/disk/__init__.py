"""The only room that writes, syncs, renames, unlinks and locks."""
