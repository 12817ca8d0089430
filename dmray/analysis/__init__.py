"""Analyses of stored policies: what they have learned. Each writes tables and figures."""
