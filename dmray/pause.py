"""`python -m dmray.pause`, the same as `dmray pause`."""

from dmray.cli.control import pause_app as app

if __name__ == "__main__":
    app()
