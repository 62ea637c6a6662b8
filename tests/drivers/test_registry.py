from __future__ import annotations

import importlib.metadata
import pathlib
import re
import uuid
from collections.abc import Callable

import pytest
from stevedore import ExtensionManager

from msgbus import DriverLoadFailure, get_rpc_transport
from msgbus.drivers.base import CONTRACT, Capability
from msgbus.drivers.fake import FakeDriver
from msgbus.drivers.registry import installed_drivers, load_driver_class
from tests.support import ROOT, new_conf


@pytest.fixture
def install(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Installs a throw-away distribution whose driver `Driver` is made by some code; returns the driver's name."""

    def install(code: str) -> str:
        name = f"throwaway_{uuid.uuid4().hex}"
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[msgbus.drivers]\n{name} = {name}:Driver\n")
        (tmp_path / f"{name}.py").write_text(f"from msgbus.drivers.fake import FakeDriver\n{code}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})  # What it found earlier in this process.
        return name

    return install


def test_loads_a_driver_by_its_name() -> None:
    """The URL's scheme names the driver's entry point."""
    assert load_driver_class("fake") is FakeDriver


@pytest.mark.parametrize(
    ("name", "hint"), [("fakee", "did you mean 'fake'?"), ("rabit", "did you mean 'rabbit'?"), ("zzz", "there are ")]
)
def test_an_unknown_driver_names_the_nearest(name: str, hint: str) -> None:
    """A driver that is not installed is an error that names the nearest one, and all that there are."""
    with pytest.raises(DriverLoadFailure) as caught:
        get_rpc_transport(new_conf(), f"{name}://")
    assert caught.value.driver == name
    assert hint in str(caught.value)
    assert "fake" in str(caught.value)
    assert "rabbit" in str(caught.value)


def test_an_unknown_driver_imports_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """To name the drivers that there are, none of them is imported."""

    def load(entry_point: importlib.metadata.EntryPoint) -> None:
        raise AssertionError(f"{entry_point} is imported")

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", load)
    with pytest.raises(DriverLoadFailure, match="rabbit"):
        load_driver_class("zzz")


@pytest.mark.parametrize("contract", [(CONTRACT[0] + 1, 0), (0, 9)])
def test_another_major_version_of_the_contract(contract: tuple[int, int], install: Callable[[str], str]) -> None:
    """A driver that was written for another major version of the contract is refused, naming both versions."""
    name = install(f"class Driver(FakeDriver):\n    contract = {contract}")
    with pytest.raises(DriverLoadFailure) as caught:
        get_rpc_transport(new_conf(), f"{name}://")
    assert ".".join(map(str, contract)) in str(caught.value)
    assert ".".join(map(str, CONTRACT)) in str(caught.value)


@pytest.mark.parametrize("minor", [0, 1, 99])
def test_another_minor_version_of_the_contract(minor: int, install: Callable[[str], str]) -> None:
    """A driver that was written for another minor version of the contract is taken."""
    cls = load_driver_class(install(f"class Driver(FakeDriver):\n    contract = ({CONTRACT[0]}, {minor})"))
    assert (cls.__name__, cls.contract) == ("Driver", (CONTRACT[0], minor))


@pytest.mark.parametrize("driver", ["object", "FakeDriver.options", "'text'"])
def test_a_class_that_is_not_a_driver(driver: str, install: Callable[[str], str]) -> None:
    """An entry point that names something else than a driver class is refused."""
    with pytest.raises(DriverLoadFailure, match="not a subclass of"):
        load_driver_class(install(f"Driver = {driver}"))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_library_here", "no_such_library_here"),
        ("raise RuntimeError('broken')", "broken"),
        ("class Driver(", "was never closed"),
        ("driver = None", "Driver"),
    ],
)
def test_a_driver_that_cannot_be_imported(code: str, says: str, install: Callable[[str], str]) -> None:
    """Whatever goes wrong while a driver is imported is the reason of a DriverLoadFailure."""
    name = install(code)
    with pytest.raises(DriverLoadFailure, match=says) as caught:
        load_driver_class(name)
    assert caught.value.driver == name


def test_installed_drivers() -> None:
    """The drivers that are installed are found with their classes."""
    found = installed_drivers()
    assert found["fake"] is FakeDriver
    assert {"kombu", "rabbit"} <= set(found)


def test_installed_drivers_without_one_that_is_broken(
    install: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that cannot be imported is left out of the list, and the log says why."""
    name = install("import no_such_library_here")
    assert name not in installed_drivers()
    assert "fake" in installed_drivers()
    assert "no_such_library_here" in caplog.text


def test_table_of_capabilities_is_that_of_the_drivers() -> None:
    """docs/howto/choose.md shows what each driver declares by default, and each capability."""
    page = (ROOT / "docs" / "howto" / "choose.md").read_text()
    section = page.partition("By default, the drivers have")[2].partition("\n## ")[0]
    head, _, *rows = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    columns = dict(zip(head.strip("| ").split(" | ")[1:], ("kombu", "qpid", "zmq", "fake"), strict=True))
    assert list(columns) == ["RabbitMQ", "Qpid", "ZeroMQ", "in memory"]
    drivers = [load_driver_class(name) for name in columns.values()]
    shown = {row.split("`")[1]: row.split(" | ")[1:] for row in rows}
    assert set(shown) == set(Capability)
    for name, cells in shown.items():
        declared = ["yes" if Capability(name) in driver.capabilities else "no" for driver in drivers]
        assert [cell.strip("| ") for cell in cells] == declared, name
