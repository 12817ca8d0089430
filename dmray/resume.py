"""`python -m dmray.resume`, the same as `dmray resume`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("resume")
