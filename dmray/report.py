"""`python -m dmray.report`, the same as `dmray report`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("report")
