"""Models that were trained elsewhere, read from local files that are never unpickled."""
