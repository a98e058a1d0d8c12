"""Runs the command line for ``python -m kerasdet.cli``."""

import sys

from kerasdet.cli import main

if __name__ == "__main__":  # tools that walk the package import this module
    sys.exit(main())
