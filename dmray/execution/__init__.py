"""Kept for MLflow models logged by dmray 0.1, which name `dmray.execution.served_policy` as their loader."""
