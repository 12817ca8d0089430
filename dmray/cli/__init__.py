"""The command lines. Each is a thin layer over a function of the library."""
