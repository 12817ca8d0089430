"""`python -m dmray.submit`, the same as `dmray submit`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("submit")
