"""Flax modules: the U-Net, the classifiers and the SSCD encoder."""
