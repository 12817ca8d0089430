"""dmray: distributed sweeps of offline-RL sequence models on Ray."""

__version__ = "0.1.0"
