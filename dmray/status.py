"""`python -m dmray.status`, the same as `dmray status`."""

from dmray.cli.status import app

if __name__ == "__main__":
    app()
