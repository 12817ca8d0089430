"""`python -m dmray.stop`, the same as `dmray stop`."""

from dmray.cli.stop import app

if __name__ == "__main__":
    app()
