"""Parity with diffusers, the reference implementation of the U-Net and of its samplers; skipped where it is missing."""
