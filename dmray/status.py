"""`python -m dmray.status`, the same as `dmray status`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("status")
