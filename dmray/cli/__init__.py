"""The command lines. Each calls functions of the library and prints the result."""
