"""`python -m dmray.data`, the same as `dmray data`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("data")
