"""Measuring memorisation: nearest neighbours, extraction scores, intervals. Pure functions of arrays."""
