"""Reads models that were trained elsewhere from local files, and never runs code in them."""
