"""The mathematics of diffusion (schedule, forward process, loss, samplers, guidance) as pure functions of arrays."""
