"""`python -m dmray.doctor`, the same as `dmray doctor`."""

from dmray.cli.doctor import app

if __name__ == "__main__":
    app()
