"""`python -m dmray.init`, the same as `dmray init`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("init")
