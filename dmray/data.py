"""`python -m dmray.data`, the same as `dmray data`."""

from dmray.cli.data import app

if __name__ == "__main__":
    app()
