"""Policies from checkpoints: load, act, evaluate, record."""
