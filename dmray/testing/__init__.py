"""Test suites for implementations of dmray's interfaces, and a slow evaluation loop to compare with. For tests only."""
