"""Triton kernels of the denoiser. Triton is imported by the modules of this package, and they only when one is used."""
