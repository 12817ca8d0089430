"""`python -m dmray.pause`, the same as `dmray pause`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("pause")
