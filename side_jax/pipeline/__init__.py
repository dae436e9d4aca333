"""The chain of stages: checks, the resolved config, the plan and the disk space."""
