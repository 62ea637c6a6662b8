"""Objects that are named on the command line, as MODULE:CLASS."""

from __future__ import annotations

import importlib
import os
import sys
from inspect import ismodule, isroutine
from typing import Any, NoReturn

import click


def make_instance(text: str, hint: str) -> object:
    """What MODULE:CLASS stands for: an instance of the class, made without arguments, or an object that is there.

    The module is imported with the current directory in front of the search path. `hint` is added to what is said where
    the class cannot be made.

    Raises:
        click.ClickException: it cannot be had; the text says why.
    """
    name, colon, attribute = text.partition(":")
    if not (colon and name and attribute):
        raise click.UsageError(f"MODULE:CLASS is for example hello:Hello, and {text!r} is not like that")
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            meant = f"; did you mean {name[:-3]}:{attribute}?" if name.endswith(".py") else ""
            raise click.UsageError(f"there is no module {name!r} in {cwd} or where Python looks{meant}") from exc
        _fail(f"importing {name!r}", exc)
    except (Exception, SystemExit) as exc:
        _fail(f"importing {name!r}", exc)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"module {name!r} ({getattr(module, '__file__', '?')}) has no {attribute!r}")
        found = getattr(found, part)
    if isroutine(found) or ismodule(found):
        raise click.UsageError(f"{text} is no class")
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as exc:
        _fail(f"making a {attribute} (without arguments)", exc, hint)


def _fail(what: str, exc: BaseException, hint: str = "") -> NoReturn:
    import traceback

    where = ""
    frames = traceback.extract_tb(exc.__traceback__)
    if frames and frames[-1].filename != __file__:
        where, hint = f" ({frames[-1].filename}, line {frames[-1].lineno})", ""
    raise click.UsageError(" ".join(f"{what} failed: {type(exc).__name__}: {exc}{where}{hint}".split())) from exc
