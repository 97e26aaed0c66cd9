"""The diffusion process: schedule, forward process with Eq. 3, and the reverse chain of Eq. 2."""
