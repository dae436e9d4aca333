"""Measures memorisation (neighbours, extraction scores, intervals, distributions) by pure functions of arrays."""
