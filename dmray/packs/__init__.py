"""Packed trials: the process that trains the trials of a GPU as batched networks, and a trial's connection to it."""
