"""`python -m dmray.analyze`, the same as `dmray analyze`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("analyze")
