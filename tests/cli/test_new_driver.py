"""``msgbus new-driver``, and the guide to writing a driver."""

from __future__ import annotations

import configparser
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from msgbus.cli.app import cli
from msgbus.conformance.suite import Conformance
from msgbus.drivers.toolkit.consuming import Feed, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from tests.support import ROOT

GUIDE = ROOT / "docs" / "howto" / "write-a-driver.md"
SOME = (
    "message_arrives or mandatory or goes_to or inbox or prefetch or overlap or requeue or idle or values_come or close"
)
"""Checks of each kind. (All of them take a minute.)"""
FAULTS = (
    "(message_arrives or mandatory or inbox or prefetch or closed or forked or come_back or cut or away or wait "
    "or close_ or hangs or second_accept or inspect) and not slow and not call and not cast"
)
"""Checks of the bare driver, most of them of what it does when its broker fails."""


def run(*args: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["new-driver", *map(str, args)])


def install(folder: pathlib.Path) -> None:
    """What pip would do that matters: say which entry points there are."""
    setup = configparser.ConfigParser()
    setup.read(folder / "setup.cfg")
    info = folder / f"{setup['metadata']['name'].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {setup['metadata']['name']}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[msgbus.drivers]{setup['options.entry_points']['msgbus.drivers']}\n")


def check(folder: pathlib.Path, which: str) -> tuple[int, str]:
    """Run the new driver's own checks, as its author does."""
    env = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    # pytest-asyncio, which is there for tests of ours, warns of an option that the author of a driver need not know.
    options = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-q", "-k", which]
    command = [sys.executable, "-W", "error", "-m", "pytest", *options]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_new_driver_passes_checks(tmp_path: pathlib.Path) -> None:
    """What is written is a distribution with an entry point; it works, and its own tests show it."""
    folder = tmp_path / "made" / "here"
    result = run("carrier_pigeon", folder)
    assert result.exit_code == 0, result.stderr
    assert "pytest" in result.stdout
    install(folder)
    code, output = check(folder, SOME)
    assert code == 0, output
    assert int(re.findall(r"(\d+) passed", output)[0]) > 20


def test_the_name_of_the_template_is_replaced_everywhere(tmp_path: pathlib.Path) -> None:
    """Files, their names and --json speak of the new driver alone; no file is forgotten, and none is added."""
    result = run("carrier_pigeon2", tmp_path / "x", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    written = [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "x")) for path in written) == sorted(found["files"])
    assert sorted(found["files"]) == [
        "README.md",
        "msgbus_carrier_pigeon2/__init__.py",
        "msgbus_carrier_pigeon2/driver.py",
        "msgbus_carrier_pigeon2/py.typed",
        "pyproject.toml",
        "setup.cfg",
        "tests/test_conformance.py",
    ]
    for path in written:
        assert "newdriver" not in f"{path.name} {path.read_text()}".lower()
    assert (found["name"], found["folder"]) == ("carrier_pigeon2", str(tmp_path / "x"))
    assert "class CarrierPigeon2Driver(BrokerDriver):" in (tmp_path / "x/msgbus_carrier_pigeon2/driver.py").read_text()
    assert "name = msgbus-carrier-pigeon2\n" in (tmp_path / "x/setup.cfg").read_text()


def test_the_directory_is_named_after_the_driver(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another it is msgbus-NAME, here; an empty one may be there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "msgbus-car-rier").mkdir()
    assert run("car_rier").exit_code == 0
    assert (tmp_path / "msgbus-car-rier" / "setup.cfg").exists()


@pytest.mark.parametrize(
    "name", ["", "Pigeon", "9lives", "a-b", "a b", "a.b", "_a", "a_", "a__b", "täubchen", "a" * 41, "../x", "a\n"]
)
def test_invalid_names_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What cannot begin a URL and name a package is refused with a line that says what can, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    result = run("--", name)
    assert result.exit_code == 2
    assert "small letters" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_driver_is_refused(tmp_path: pathlib.Path) -> None:
    """A driver of that name is installed."""
    result = run("zmq", tmp_path / "x")
    assert result.exit_code == 2
    assert "already a driver 'zmq'" in result.stderr
    assert not (tmp_path / "x").exists()


def test_an_existing_directory_has_to_be_empty(tmp_path: pathlib.Path) -> None:
    """Otherwise nothing is written; a file in its place, or a missing right, is an error too."""
    (tmp_path / "mine").write_text("")
    result = run("pigeon", tmp_path)
    assert (result.exit_code, os.listdir(tmp_path)) == (2, ["mine"])
    assert "not empty" in result.stderr
    for folder in (tmp_path / "mine", tmp_path / "mine" / "x", "/proc/x"):
        result = run("pigeon", folder)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


@pytest.mark.timeout(300)
def test_the_guides_driver_passes_checks(tmp_path: pathlib.Path) -> None:
    """Its three files, put where it says, are a driver that passes the checks, also where its broker fails."""
    run("carrier_pigeon", tmp_path / "x")
    install(tmp_path / "x")
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    assert set(files) == {"broker.py", "driver.py", "test_conformance.py"}
    (tmp_path / "x" / "msgbus_carrier_pigeon" / "driver.py").write_text(files.pop("driver.py"))
    for name, text in files.items():
        (tmp_path / "x" / "tests" / name).write_text(text)
    code, output = check(tmp_path / "x", FAULTS)
    assert code == 0, output
    assert int(re.findall(r"(\d+) passed", output)[0]) > 40


def test_the_guide_names_what_there_is() -> None:
    """Each check that it speaks of exists, and so does each method of the toolkit that it lists."""
    text = GUIDE.read_text()
    for name in re.findall(r"`(test_\w+)`", text):
        assert hasattr(Conformance, name) or name in ("test_slow", "test_conformance"), name
    text = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    words = {"line": Line, "source": Source, "outgoing": Outgoing, "feed": Feed, "session": Session, "loop": Loop}
    named = re.findall(r"\b(line|source|outgoing|feed|session|loop)\.([a-z_]+)\(", text)
    assert len(set(named)) > 20
    for whose, name in named:
        assert hasattr(words[whose], name), f"{whose}.{name}"
