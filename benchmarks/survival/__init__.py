"""What each queue, and each of its peers, survives: real faults, in fresh directories and processes."""
