"""Images made in batches on all devices, and written in shards."""
