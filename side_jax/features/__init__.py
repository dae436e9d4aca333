"""Feature extractors: uint8 images in, unit-norm float32 features out; and the pseudo-labels made from them."""
