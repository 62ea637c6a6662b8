"""A virtual environment for each library of others that msgbus is compared with: made once, and kept under a cache.

Each has the newest release that pip finds on PyPI. They do not share an environment, since what they need differs.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

FRESH_SECONDS = 7 * 24 * 3600.0
"""An environment that is older is asked for newer releases before it is used."""
_INSTALL_SECONDS = 1800.0
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class PeerMissing(Exception):
    """A library cannot be used with this Python; the text says why."""


class Environment(NamedTuple):
    """Where a library is installed.

    Attributes:
        python: its interpreter.
        versions: name of a distribution -> its version, of all that are installed there.
    """

    python: str
    versions: dict[str, str]


def cache() -> pathlib.Path:
    """The folder of all environments: ``msgbus-benchmarks`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "msgbus-benchmarks" / f"cpython-{sys.version_info[0]}.{sys.version_info[1]}"


def get(name: str, requirements: Sequence[str], module: str, folder: pathlib.Path | None = None) -> Environment:
    """The environment `name`, which is made, or brought up to date, if need be.

    Args:
        name: of the folder.
        requirements: what pip installs.
        module: what has to be importable there before the environment counts as usable.
        folder: in place of `cache`.

    Raises:
        PeerMissing: it cannot be installed, or not be imported.
    """
    home = (folder or cache()) / name
    python, stamp = home / "bin" / "python", home / "installed"
    wanted = " ".join(requirements)
    recent = stamp.exists() and stamp.read_text() == wanted and time.time() - stamp.stat().st_mtime < FRESH_SECONDS
    if not recent:
        if not stamp.exists():
            shutil.rmtree(home, ignore_errors=True)  # An earlier run was interrupted.
            _run(name, [sys.executable, "-m", "venv", str(home)])
        _run(name, [str(python), "-m", "pip", "install", "--quiet", "--upgrade", *requirements])
    _run(name, [str(python), "-c", f"import {module}"])
    if not recent:
        stamp.write_text(wanted)
    listed = json.loads(_run(name, [str(python), "-m", "pip", "list", "--format=json"]))
    return Environment(str(python), {found["name"]: found["version"] for found in listed})


def _run(name: str, command: Sequence[str]) -> str:
    """What the command prints. It may take long, and stands back for whatever else the machine does."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    try:
        result = subprocess.run(
            ["nice", "-n", "19", *command],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise PeerMissing(f"{name}: {command[2:4]} has not ended within {_INSTALL_SECONDS:g} s") from exc
    if result.returncode != 0:
        raise PeerMissing(f"{name}: {reason(result.stderr or result.stdout)}")
    return result.stdout


def reason(output: str) -> str:
    """The line of a failed program's output that says why: the last with an error, else the last.

    Lines that are set in are code, in tracebacks and warnings.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line[0].isspace()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it failed without a word"])[-1]
