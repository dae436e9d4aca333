"""Intervals, tests, calibrated thresholds and rarefaction."""
