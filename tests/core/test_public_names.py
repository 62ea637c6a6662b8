from __future__ import annotations

import ast
import configparser
import inspect
import pathlib
import subprocess
import sys
import types

import pytest

import msgbus
from msgbus import exceptions
from tests.support import ROOT


def test_all_is_complete() -> None:
    """`__all__` lists, sorted and each once, what the package imports for its users, and every name is there."""
    tree = ast.parse(inspect.getsource(msgbus))
    imported = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    public = [name for name in imported if not name.startswith("_") and name != "annotations"]
    assert sorted(msgbus.__all__) == sorted(public)
    assert len(set(msgbus.__all__)) == len(msgbus.__all__)
    for name in msgbus.__all__:
        assert not isinstance(getattr(msgbus, name), types.ModuleType)


def test_every_error_is_public() -> None:
    """Whatever msgbus raises can be caught by a name of the package."""
    for name, cls in vars(exceptions).items():
        if isinstance(cls, type) and cls.__module__ == exceptions.__name__:
            assert getattr(msgbus, name) is cls
            assert name in msgbus.__all__


@pytest.mark.parametrize("name", msgbus.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """Every public name has a docstring of its own."""
    thing = getattr(msgbus, name)
    assert vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__


def test_is_typed() -> None:
    """Users' type checkers see that msgbus has types."""
    assert (pathlib.Path(msgbus.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    "library", ["kombu", "amqp", "zmq", "proton", "redis", "stevedore", "rich", "click", "opentelemetry"]
)
def test_importing_msgbus_imports_no_driver_library(library: str) -> None:
    """`import msgbus` leaves every driver's library, and whatever else is not needed yet, unimported."""
    code = "import sys, msgbus; print(*(name.partition('.')[0] for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert library not in run.stdout.split()


def test_a_transport_imports_no_other_drivers_library() -> None:
    """A transport in memory leaves the libraries of the other drivers unimported."""
    code = (
        "import sys, msgbus\n"
        "from oslo_config import cfg\n"
        "msgbus.get_rpc_transport(cfg.ConfigOpts(), 'fake://').cleanup()\n"
        "print(*(name.partition('.')[0] for name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"kombu", "amqp", "zmq", "proton"} & set(run.stdout.split())


def test_extra_docs_has_what_the_pages_are_made_from() -> None:
    """Autodoc imports the conformance suite, so that the documentation cannot be built without pytest."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    pages = (ROOT / "docs" / "reference").glob("*.md")
    assert any("msgbus.conformance" in page.read_text() for page in pages)
    wanted = [line for line in extras["conformance"].splitlines() if line.startswith("pytest>")]
    assert wanted
    assert set(wanted) <= set(extras["docs"].splitlines())
