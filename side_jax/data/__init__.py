"""Images, read from where they are, and their split into members and held-out."""
