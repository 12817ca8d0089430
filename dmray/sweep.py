"""`python -m dmray.sweep`, the same as `dmray sweep`."""

from dmray.cli.sweep import app

if __name__ == "__main__":
    app()
