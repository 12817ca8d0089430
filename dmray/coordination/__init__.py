"""How other processes reach a running sweep: its commands, its lock and the heartbeat of its driver."""
