"""An interpreter of PTX, the code that nvcc and Triton emit: see `module.Module`."""
