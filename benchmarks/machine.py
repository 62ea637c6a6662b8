"""What a run was made on: the machine, Python and the libraries, and how busy the machine was before."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def describe() -> dict[str, str]:
    """What the figures depend on. To be asked before the run begins, since it says how busy the machine is."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before the run (1, 5, 15 minutes)": load,
        "busy before the run": f"{100 * busy_share():.0f} % of all cores in one second",
        "msgbus": f"{version('msgbus')} {_commit()}".strip(),
    }


def busy_share(seconds: float = 1.0) -> float:
    """The share of all cores that is used by whatever runs here."""
    before = _times()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / (sum(spent) or 1)  # idle, and waiting for a disk


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed here."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _times() -> list[int]:
    first = pathlib.Path("/proc/stat").read_text().splitlines()[0]
    return [int(word) for word in first.split()[1:9]]


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """Which commit of the checkout, if it is one."""
    root = pathlib.Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
