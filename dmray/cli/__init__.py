"""The command lines, one module a command; each is a thin layer over a library function."""
