"""Training: the stages of Algorithm 1, checkpoints, run directories and progress."""
