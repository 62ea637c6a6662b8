#!/usr/bin/env python3
"""Makes performance.md, beside this folder, and its plots, from results/*.json and explanation.md.

The results are what ``python -m benchmarks --record docs`` has measured, without and with ``--scaling``.
"""

from __future__ import annotations

import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent))

from benchmarks import page  # noqa: E402  # the checkout is no installed package

if __name__ == "__main__":
    sys.stdout.write(f"{page.write(DOCS)} is written\n")
