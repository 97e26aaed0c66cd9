"""CUDA kernels executed without a GPU: a simulator that compiles them for the CPU, and an interpreter of their PTX."""
