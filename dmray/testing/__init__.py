"""Fakes and contract suites, imported by tests alone."""
