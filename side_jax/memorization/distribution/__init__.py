"""Compares the distribution of generated images with those of members and held-out images."""
