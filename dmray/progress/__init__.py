"""How far trials and sweeps are, read from their records."""
