"""``msgbus new-driver``."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from msgbus.cli.app import cli


def run(*args: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["new-driver", *map(str, args)])


def files_of(folder: pathlib.Path) -> set[str]:
    """The files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_distribution_is_made(tmp_path: pathlib.Path) -> None:
    """It is named throughout as its author says, and the answer lists what was written."""
    folder = tmp_path / "new" / "mine"
    result = run("pigeon", "--directory", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["directory"] == str(folder)
    written = {os.path.relpath(path, folder) for path in found["files"]}
    assert written == files_of(folder)
    assert written == {
        "README.md",
        "pyproject.toml",
        "setup.cfg",
        "msgbus_pigeon/__init__.py",
        "msgbus_pigeon/driver.py",
        "msgbus_pigeon/hub.py",
        "tests/test_conformance.py",
    }
    for path in folder.rglob("*.*"):
        assert "mymq" not in path.read_text().lower()
    assert "pigeon = msgbus_pigeon.driver:PigeonDriver" in (folder / "setup.cfg").read_text()


def test_the_text_says_what_to_do_next(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is made in the current directory; the commands that follow are given."""
    monkeypatch.chdir(tmp_path)
    result = run("pigeon")
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == ["msgbus-pigeon"]
    for line in ("  cd msgbus-pigeon\n", "  msgbus_pigeon/driver.py\n", "  python -m pytest\n"):
        assert line in result.stdout


@pytest.mark.parametrize("name", ["", "Pigeon", "1st", "my-mq", "my_mq", "class", "../mq", "ü", "a" * 41])
def test_a_name_that_cannot_be_used(tmp_path: pathlib.Path, name: str) -> None:
    """It would be no package, or no scheme of a URL: one line says what is wanted, and nothing is made."""
    result = run(name, "--directory", tmp_path / "x")
    assert result.exit_code == 2
    assert "is no name for a driver; use lower-case letters" in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_left_alone(tmp_path: pathlib.Path) -> None:
    """A driver of that name, a directory that exists, one that cannot be made: one line each."""
    (tmp_path / "file").write_text("mine")
    for args, text in {
        ("fake", "--directory", tmp_path / "x"): "there is a driver fake already: msgbus.drivers.fake:FakeDriver",
        ("pigeon", "--directory", tmp_path): "is there already",
        ("pigeon", "--directory", tmp_path / "file"): "is there already",
        ("pigeon", "--directory", tmp_path / "file" / "x"): "cannot be written: Not a directory",
    }.items():
        result = run(*args)
        assert result.exit_code == 2
        assert text in result.stderr
        assert result.stderr.count("\n") == 1
    assert files_of(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "mine"


def test_the_driver_that_is_made_passes_the_suite(tmp_path: pathlib.Path) -> None:
    """As it stands, before its author has changed anything: what fails later is what was changed."""
    folder = tmp_path / "msgbus-pigeon"
    assert run("pigeon", "--directory", folder).exit_code == 0
    # What pip would make of the entry point in setup.cfg, without its taking half a minute.
    info = tmp_path / "msgbus_pigeon-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: msgbus-pigeon\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[msgbus.drivers]\npigeon = msgbus_pigeon.driver:PigeonDriver\n")
    paths = os.pathsep.join([str(tmp_path), str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-n", "4", "-k", "not slow", "tests"]
    # A folder of its own: the configuration of this checkout's pytest is not the driver author's.
    (folder / "pytest.ini").write_text("[pytest]\n")
    ended = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert " passed" in ended.stdout
