"""`python -m dmray.track`, the same as `dmray track`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("track")
