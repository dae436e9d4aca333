"""side_jax: how much of its training data can be pulled out of an unconditional diffusion model."""

__version__ = "0.1.0"
