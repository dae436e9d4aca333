"""What starts an audit: the command line, and the same for Python."""
