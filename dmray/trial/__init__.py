"""One trial: training, checkpoints, evaluations beside it, and what it records."""
