"""`python -m dmray.sweep`, the same as `dmray sweep`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("sweep")
