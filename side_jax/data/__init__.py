"""Images and their split into members and held-out."""
