"""`python -m dmray.logs`, the same as `dmray logs`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("logs")
