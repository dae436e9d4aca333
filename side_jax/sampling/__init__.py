"""Generating images in batches on all devices, and storing them in shards."""
