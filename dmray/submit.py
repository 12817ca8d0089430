"""`python -m dmray.submit`, the same as `dmray submit`."""

from dmray.cli.submit import app

if __name__ == "__main__":
    app()
