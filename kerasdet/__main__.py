"""Runs the command line: ``python -m kerasdet``."""

import sys

from kerasdet.cli import main

if __name__ == "__main__":
    sys.exit(main())
