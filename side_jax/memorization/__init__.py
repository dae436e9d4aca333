"""Measuring memorisation: nearest neighbours, extraction scores, intervals, as pure functions of arrays."""
