"""A process that never answers, for tests."""

import sys

sys.stdin.read()
