"""The HTML page: a page model in, one self-contained file out."""
