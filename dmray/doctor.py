"""`python -m dmray.doctor`, the same as `dmray doctor`."""

from dmray.cli.entry import run_command

if __name__ == "__main__":
    run_command("doctor")
