"""The memorisation divergence, and Theorem 1 of Chen et al. 2024."""
