"""Feature extractors (uint8 images to unit-norm float32 features) and the pseudo-labels made from the features."""
