"""What is public for the authors of drivers is there, is documented, and is enough."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import types

import pytest

import msgbus
from msgbus import exceptions
from msgbus.drivers import base
from msgbus.drivers.toolkit import broker, consuming, session
from tests.support import ROOT

EXAMPLES = sorted(path for name in ("msgbus-nats", "msgbus-redis") for path in (ROOT / "examples" / name).rglob("*.py"))
TEMPLATE = sorted((ROOT / "msgbus" / "cli" / "template").rglob("*.py"))
GUIDE = ROOT / "docs" / "howto" / "write-a-driver.md"


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


@pytest.mark.parametrize("path", [*EXAMPLES, *TEMPLATE], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_example_and_the_template_use_public_names_only(path: pathlib.Path) -> None:
    """The example of a third party's driver and the template import what is public for drivers, or for services."""
    check_imports(path.read_text())


def test_the_guide_uses_nothing_else() -> None:
    """Nor do the files of the guide to writing a driver."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert any("BrokerDriver" in block for block in blocks)
    for block in blocks:
        check_imports(block)


TOOLKIT = [module for module in base.PUBLIC if ".toolkit." in module]


@pytest.mark.parametrize("module", TOOLKIT)
def test_the_toolkit_says_what_each_method_does(module: str) -> None:
    """Each public method of its public classes has a docstring of its own; so has each of its modules."""
    imported = importlib.import_module(module)
    assert imported.__doc__
    for name in base.PUBLIC[module]:
        cls = getattr(imported, name)
        for method, member in vars(cls).items() if isinstance(cls, type) else ():
            func = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            inherited = any(hasattr(parent, method) for parent in cls.__mro__[1:])
            if isinstance(func, types.FunctionType) and not method.startswith("_"):
                assert func.__doc__ or inherited, f"{name}.{method}"


def test_what_a_driver_overrides_names_public_classes_alone() -> None:
    """The annotations of `BrokerDriver`, `Session` and `Feed` need no name that a driver may not import."""
    public = {name for names in base.PUBLIC.values() for name in names}
    for cls in (broker.BrokerDriver, session.Session, consuming.Feed):
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if name.startswith("_") or name in OF_THE_SHELL:
                continue
            named = set(re.findall(r"[A-Z]\w+", " ".join(str(note) for note in method.__annotations__.values())))
            assert named - OF_PYTHON <= public, name


OF_PYTHON = {"Any", "BaseException", "Callable", "False", "Future", "None", "Sequence", "True"}
OF_THE_SHELL = {"end", "stop"}
"""Methods of `BrokerDriver` that its subscriptions and inboxes call."""


def check_imports(text: str) -> None:
    """See that a module of a driver imports what is public for drivers, or for services."""
    public = base.PUBLIC | {"msgbus": tuple(msgbus.__all__)}
    tree = ast.parse(text)
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
