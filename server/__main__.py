"""`python -m server`: the same as the command `cairn`."""

from server.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
