"""`python -m dmray.pause`, the same as `dmray pause`."""

from dmray.cli.pause import app

if __name__ == "__main__":
    app()
