"""Makes the objects that are named on the command line as MODULE:CLASS."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from inspect import ismodule, isroutine
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from msgbus.serializer import Serializer

_PLAIN = (str, bytes, int, float, list, tuple, dict, set)
"""Types of plain data: their methods cannot be what the user wants to serve."""
_SERIALIZER_HINT = "; a serializer is a subclass of msgbus.Serializer, has all its methods, and takes no arguments"


def make_serializer(text: str | None) -> Serializer | None:
    """Make the serializer that MODULE:CLASS names; None if the user names none.

    Raises:
        click.ClickException: it cannot be made, or is not a `Serializer`.
    """
    from msgbus.serializer import Serializer

    if text is None:
        return None
    made = make_instance(text, _SERIALIZER_HINT)
    if not isinstance(made, Serializer):
        raise click.UsageError(f"{text} is not a serializer: make its class a subclass of msgbus.Serializer")
    return made


def check_module(name: str) -> None:
    """Import a module whose exceptions may be rebuilt here, with the current directory on the search path.

    Raises:
        click.ClickException: it cannot be imported.
    """
    _import(name, "")


def make_instance(text: str, hint: str) -> object:
    """Make an instance of the class that MODULE:CLASS names, without arguments; an object is returned as it is.

    The module is imported with the current directory in front of the search path. `hint` ends the error's text if the
    class cannot be called.

    Raises:
        click.ClickException: the text says what failed.
    """
    name, colon, attribute = text.partition(":")
    if not (colon and name and attribute):
        raise click.UsageError(f"{text!r} is not MODULE:CLASS, such as hello:Hello")
    module = _import(name, attribute)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = getattr(module, "__file__", "?")
            raise click.UsageError(f"module {name!r} ({where}) has no {attribute!r}{_classes_in(module, attribute)}")
        found = getattr(found, part)
    if isroutine(found) or ismodule(found) or found is None or isinstance(found, _PLAIN):
        what = "a function" if isroutine(found) else f"a {type(found).__name__}"
        raise click.UsageError(f"{text} is not a class but {what}{_classes_in(module, attribute)}")
    if not isinstance(found, type):
        return found
    try:
        return found()
    except (Exception, SystemExit) as exc:
        _fail(f"{attribute}()", exc, hint)


def _import(name: str, attribute: str) -> ModuleType:
    """Import a module with the current directory in front of the search path. `attribute` is for the error."""
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            meant = f"; run this in the directory of {name.partition('.')[0]}.py, or name that in PYTHONPATH"
            if name.endswith(".py"):
                meant = f"; did you mean {':'.join(filter(None, [name[:-3].replace('/', '.'), attribute]))}?"
            raise click.UsageError(f"there is no module {name!r} in {cwd} or in Python's path{meant}") from exc
        _fail(f"importing {name!r}", exc)
    except (Exception, SystemExit) as exc:
        _fail(f"importing {name!r}", exc)


def _classes_in(module: ModuleType, wanted: str) -> str:
    """A hint for an error: the class that is probably meant, else all that the module defines."""
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    near = difflib.get_close_matches(wanted, own, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {module.__name__}:{near[0]}?"
    return f"; its classes are {', '.join(own)}" if own else "; it defines no class"


def _fail(what: str, exc: BaseException, hint: str = "") -> NoReturn:
    import traceback

    where = ""
    frames = traceback.extract_tb(exc.__traceback__)
    if frames and frames[-1].filename != __file__:
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})"
        hint = "; --debug shows the whole traceback"
    raise click.UsageError(" ".join(f"{what} failed: {type(exc).__name__}: {exc}{where}{hint}".split())) from exc
