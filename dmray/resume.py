"""`python -m dmray.resume`, the same as `dmray resume`."""

from dmray.cli.control import resume_app as app

if __name__ == "__main__":
    app()
