"""The mathematics of diffusion: schedule, forward process and loss, samplers, guidance. Pure functions of arrays."""
