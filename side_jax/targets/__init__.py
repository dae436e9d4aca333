"""Reads models that were trained elsewhere from local files, and never unpickles them."""
