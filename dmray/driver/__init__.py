"""The process that runs a sweep from start to end."""
