"""As `benchmarks.child`; but it counts its functions, if it is told to: for `benchmarks.counting`."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from benchmarks.child import Role, end_on_error, main

PYTHON, C = "call", "c_call"
"""Calls of functions in Python, and of those in C, as `sys.setprofile` names them."""
_counts = dict.fromkeys((PYTHON, C), 0)


def _on_event(_frame: FrameType, event: str, _arg: Any) -> None:
    if event in _counts:
        # One thread cannot come between the reading and the writing here: nothing in this line is a function in Python.
        _counts[event] += 1


class CountedRole(Role):
    """It is told to say how many functions it has run so far."""

    def obey(self, order: dict[str, Any]) -> None:
        if "functions" in order:
            self.say(_counts)
        else:
            super().obey(order)


if __name__ == "__main__":
    threading.setprofile(_on_event)
    sys.setprofile(_on_event)
    end_on_error(main)(*sys.argv[1:], kind=CountedRole)
