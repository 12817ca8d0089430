"""`python -m dmray.stop`, the same as `dmray stop`."""

from dmray.cli.control import stop_app as app

if __name__ == "__main__":
    app()
