"""What a run leaves on disk: files, units of work, checkpoints, curves and the lock."""
