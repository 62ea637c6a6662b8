"""`msgbus completion` in the shells that it is for, typed into as a person would."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.functional.conftest import skip_or_fail
from tests.terminal import Terminal

BIN = pathlib.Path(sys.executable).parent


def shell(name: str, home: pathlib.Path) -> tuple[str, dict[str, str]]:
    """Where a shell is, and an environment with a home of its own."""
    path = shutil.which(name)
    if path is None:
        skip_or_fail(f"{name} is missing: tests/functional/brokers/install shells")
    assert path is not None
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MSGBUS_", "XDG_", "PYTEST"))}
    return path, env | {"HOME": str(home), "ZDOTDIR": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}


def printed(name: str) -> str:
    """The script for a shell."""
    command = [str(BIN / "msgbus"), "completion", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("way", ["file", "eval"])
def test_zsh_completes_every_time(way: str, tmp_path: pathlib.Path) -> None:
    """Commands, options and values, from a file in $fpath and from eval: the second Tab does what the first did."""
    path, env = shell("zsh", tmp_path)
    (tmp_path / "_msgbus").write_text(printed("zsh") if way == "file" else "")
    use = f"fpath=({tmp_path} $fpath)" if way == "file" else ""
    then = 'eval "$(msgbus completion zsh)"' if way == "eval" else ""
    (tmp_path / ".zshrc").write_text(
        f"{use}\nautoload -Uz compinit && compinit -u\n{then}\nunsetopt prompt_cr prompt_sp\nPS1='READY> '\n"
    )
    with Terminal([path, "-d", "-i"], env) as terminal:
        for typed, completed in [
            ("msgbus multi", "multicall"),
            ("msgbus multi", "multicall"),
            ("msgbus call --time", "--timeout"),
            ("msgbus ping --url rab", "rabbit://"),
        ]:
            terminal.wait_for("READY> ")
            terminal.raw = ""
            terminal.type(f"{typed}\t")
            terminal.wait_for(completed)
            terminal.raw = ""
            terminal.type("\x15true\n")  # in place of the line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("msgbus multi", ["multicall"]),
        ("msgbus ca", ["call", "cast"]),
        ("msgbus call --time", ["--timeout"]),
        ("msgbus ping --url rab", ["rabbit://"]),
        ("msgbus completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_fish_completes(line: str, expected: list[str], tmp_path: pathlib.Path) -> None:
    """From the file that the help names."""
    path, env = shell("fish", tmp_path)
    file = tmp_path / ".config" / "fish" / "completions" / "msgbus.fish"
    file.parent.mkdir(parents=True)
    file.write_text(printed("fish"))
    done = subprocess.run([path, "-c", f'complete -C "{line}"'], env=env, capture_output=True, text=True, check=True)
    assert sorted(found.partition("\t")[0] for found in done.stdout.splitlines()) == expected
