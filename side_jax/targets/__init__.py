"""Reads models that were trained elsewhere from files, local or of the hub, and never runs code in them."""
