"""Reads images and splits them into members and held-out images."""
