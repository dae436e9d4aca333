"""The mathematics of diffusion: schedule, forward process and loss, samplers, guidance, as pure functions of arrays."""
