"""What a command line starts: flags, help and exit codes."""
