"""`python -m dmray.explain`, the same as `dmray explain`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("explain")
