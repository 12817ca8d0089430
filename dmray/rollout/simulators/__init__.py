"""The built-in simulators: the one of engine X is `SIMULATOR` in the file `X.py`, loaded when a task needs it."""
