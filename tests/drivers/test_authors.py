"""What is public for the authors of drivers is there, is documented, and is enough."""

from __future__ import annotations

import ast
import importlib
import pathlib
import types

import pytest

import msgbus
from msgbus import exceptions
from msgbus.drivers import base
from tests.support import ROOT

EXAMPLE = sorted((ROOT / "examples" / "msgbus-nats").rglob("*.py"))
TEMPLATE = sorted((ROOT / "msgbus" / "cli" / "template").rglob("*.py"))


@pytest.mark.parametrize("module", base.PUBLIC)
def test_public_names_are_there_and_documented(module: str) -> None:
    """Each can be imported from where it is said to be, and the classes and functions have a docstring."""
    imported = importlib.import_module(module)
    for name in base.PUBLIC[module]:
        thing = getattr(imported, name)
        if isinstance(thing, type | types.FunctionType):
            assert thing.__doc__, name


def test_the_whole_contract_is_public() -> None:
    """What the contract's module defines without an underscore is listed, but the list itself."""
    defined = {
        name
        for node in ast.parse(pathlib.Path(base.__file__).read_text()).body
        for name in names_of(node)
        if not name.startswith("_")
    }
    assert defined - {"PUBLIC"} == set(base.PUBLIC["msgbus.drivers.base"])


def test_the_errors_of_the_contract_are_public() -> None:
    """Every error that the contract's docstrings name may be used."""
    text = pathlib.Path(base.__file__).read_text()
    named = {name for name in vars(exceptions) if f"`{name}`" in text or f"{name}:" in text}
    assert named <= set(base.PUBLIC["msgbus.exceptions"])


@pytest.mark.parametrize("path", [*EXAMPLE, *TEMPLATE], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_example_and_the_template_use_public_names_only(path: pathlib.Path) -> None:
    """The example of a third party's driver and the template import what is public for drivers, or for services."""
    public = base.PUBLIC | {"msgbus": tuple(msgbus.__all__)}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "msgbus"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "msgbus":
            assert {alias.name for alias in node.names} <= set(public.get(str(node.module), ()))


def names_of(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
