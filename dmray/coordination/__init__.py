"""How a sweep's processes find each other: commands to a running sweep, its lock and its heartbeat."""
