"""Ends the process at import, as a script does."""

import sys

sys.exit(3)
