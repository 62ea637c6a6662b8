"""``msgbus zmq-keys``."""

from __future__ import annotations

import json
import os
import pathlib
import stat

import pytest
from click.testing import CliRunner, Result

from msgbus.cli.app import cli
from msgbus.drivers.zmq.security import KeyRing, read_key_file


def run(*args: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["zmq-keys", *map(str, args)])


def mode(path: pathlib.Path) -> int:
    """The rights of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_keys_are_made_for_their_owner_only(tmp_path: pathlib.Path, umask: int) -> None:
    """Nobody else may read the secret one, whatever the umask; nothing else is left; the driver takes them."""
    folder, before = tmp_path / "a" / "keys", os.umask(umask)
    try:
        result = run(folder, "--name", "one", "--json")
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.stderr
    assert (mode(folder), mode(folder / "one.key_secret")) == (0o700, 0o600)
    assert sorted(os.listdir(folder)) == ["one.key", "one.key_secret"]
    found = json.loads(result.stdout)
    assert set(found) == {"name", "secret_key_file", "public_key_file", "keys_dir", "public_key"}
    assert read_key_file(found["secret_key_file"]).public.decode() == found["public_key"]
    assert KeyRing(found["keys_dir"]).names() == {found["public_key"]: "one"}


def test_the_text_says_what_to_copy_and_never_the_secret(tmp_path: pathlib.Path) -> None:
    """The public file, and the lines of the configuration."""
    result = run(tmp_path / "keys", "--name", "one")
    assert f"scp {tmp_path}/keys/one.key HOST:" in result.stdout
    assert f"key_file = {tmp_path}/keys/one.key_secret" in result.stdout
    assert read_key_file(str(tmp_path / "keys/one.key_secret")).secret.decode() not in result.output


@pytest.mark.parametrize("there", ["one.key", "one.key_secret"])
def test_nothing_is_overwritten_without_force(tmp_path: pathlib.Path, there: str) -> None:
    """Whichever of the two is there; and none is left of the other."""
    (tmp_path / there).write_text("mine")
    result = run(tmp_path, "--name", "one")
    assert result.exit_code == 2
    assert f"{there} exists already; --force overwrites it" in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "mine"
    assert run(tmp_path, "--name", "one", "--force").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["one.key", "one.key_secret"]
    assert mode(tmp_path / "one.key_secret") == 0o600


def test_wrong_names_and_unsafe_folders_are_refused(tmp_path: pathlib.Path) -> None:
    """A name that leads elsewhere, a directory that is a file, one that others may write to: one line each."""
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for args, text in {
        (tmp_path / "k", "--name", "../one"): "cannot be a key's name",
        (tmp_path / "k", "--name", ""): "cannot be a key's name",
        (tmp_path / "file",): "is a file",
        (tmp_path / "file" / "k",): "is not a directory",
        (tmp_path / "open",): "others may write to",
    }.items():
        result = run(*args)
        assert result.exit_code == 2
        assert text in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "k").exists()
    assert os.listdir(tmp_path / "open") == []
