"""`python -m dmray.evaluate`, the same as `dmray evaluate`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("evaluate")
