"""`python -m dmray.export`, the same as `dmray export`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("export")
