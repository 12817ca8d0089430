"""`python -m dmray.evaluate`, the same as `dmray evaluate`."""

from dmray.cli.evaluate import app

if __name__ == "__main__":
    app()
