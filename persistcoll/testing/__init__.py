"""For proving a store: the laws, and disks that fail or lose power."""
