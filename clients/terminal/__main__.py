"""`python -m clients.terminal`: the same as the command `cairn`."""

import sys

from clients.terminal.cli import main

if __name__ == "__main__":
    sys.exit(main())
