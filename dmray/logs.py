"""`python -m dmray.logs`, the same as `dmray logs`."""

from dmray.cli.logs import app

if __name__ == "__main__":
    app()
