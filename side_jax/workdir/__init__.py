"""The files of a run on disk: units of work, checkpoints, curves and the lock."""
