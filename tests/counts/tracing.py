"""Counts the bytecode instructions that this process runs, by function."""

from __future__ import annotations

import os
import pathlib
import sys
import sysconfig
import threading
import time
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
MEASURING = (__file__, str(pathlib.Path(__file__).with_name("child.py")))
"""What measures is not measured."""
FOLDERS = (str(ROOT), *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")))
"""What code lies in, without which its name is the same on every machine."""
TIMED = ("msgbus/drivers/toolkit/turn.py:Turn.stand_by", "msgbus/drivers/toolkit/turn.py:Turn.is_free")
"""Functions that are left out: a thread that stands by looks every few milliseconds whether it is needed, so their
counts say how long something took."""
QUIET = 0.05
"""Seconds without an instruction, after which the process has done all that it was asked for."""
DEADLINE = 60.0
"""Seconds for that."""

Counts = dict[str, int]

_TIMED = {name.partition(":")[2] for name in TIMED}
_counts: defaultdict[CodeType, int] = defaultdict(int)


def begin() -> None:
    """Count from now on: in this thread, from its next function on, and in all that begin later."""
    threading.settrace(_on_call)
    sys.settrace(_on_call)


def end() -> None:
    """Count no more in this thread, and in those that begin later."""
    threading.settrace(None)
    sys.settrace(None)


def _on_call(frame: FrameType, _event: str, _arg: Any) -> Any:
    if frame.f_code.co_filename in MEASURING:
        return None
    frame.f_trace_lines = False
    frame.f_trace_opcodes = True
    _counts[frame.f_code] += 1  # the call itself, which may be all that a function does in C
    return _on_opcode


def _on_opcode(frame: FrameType, event: str, _arg: Any) -> Any:
    if event == "opcode":
        # One thread cannot come between the reading and the writing here: nothing in this line is Python code.
        _counts[frame.f_code] += 1
    return _on_opcode


def snapshot() -> dict[CodeType, int]:
    """What was counted so far, once the other threads of this process have nothing left to do."""
    end = time.monotonic() + DEADLINE
    total, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET:
        now = sum(count for code, count in list(_counts.items()) if code.co_qualname not in _TIMED)
        if now != total:
            total, since = now, time.monotonic()
        if time.monotonic() > end:
            raise TimeoutError("this process never has nothing to do")
        time.sleep(QUIET / 10)
    return dict(_counts)


def difference(before: dict[CodeType, int], after: dict[CodeType, int]) -> Counts:
    """What was counted between two snapshots, by the names of functions."""
    found: defaultdict[str, int] = defaultdict(int)
    for code, count in after.items():
        if count > before.get(code, 0):
            found[_name(code)] += count - before.get(code, 0)
    return {name: count for name, count in found.items() if name not in TIMED}


def _name(code: CodeType) -> str:
    """A function, by a name that is the same on every machine."""
    path = code.co_filename
    for folder in FOLDERS:
        if path.startswith(folder + os.sep):
            return f"{path[len(folder) + 1 :]}:{code.co_qualname}"
    return f"{pathlib.Path(path).name}:{code.co_qualname}"
