"""`python -m dmray.resume`, the same as `dmray resume`."""

from dmray.cli.resume import app

if __name__ == "__main__":
    app()
