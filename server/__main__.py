"""`python -m server serve`, `keys` and `check`: what the command `cairn` runs for them."""

from server.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
