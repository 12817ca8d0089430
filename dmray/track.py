"""`python -m dmray.track`, the same as `dmray track`."""

from dmray.cli.track import app

if __name__ == "__main__":
    app()
