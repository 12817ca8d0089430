"""A toy plugin of dmray: a task family."""
