"""`python -m dmray.stop`, the same as `dmray stop`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("stop")
