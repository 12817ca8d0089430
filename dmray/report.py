"""`python -m dmray.report`, the same as `dmray report`."""

from dmray.cli.report import app

if __name__ == "__main__":
    app()
