"""Trackers: copies of the ledgers for people to look at. W&B and TensorBoard; MLflow has a package of its own."""
