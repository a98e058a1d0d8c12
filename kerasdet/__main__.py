"""Runs the command line: ``python -m kerasdet``."""

import sys

from kerasdet.cli import main

sys.exit(main())
