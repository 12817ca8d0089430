"""The built-in families, one file each; every file here has a tuple `FAMILIES`, which `dmray.tasks.registry` reads."""
