"""``python -m aftershock``: the command line, for where the script ``aftershock`` is not on the path."""

from aftershock.harness.cli.main import main

if __name__ == "__main__":
    main()
