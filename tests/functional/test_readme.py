"""The README and the example tell the truth.

The README's blocks, pasted one after the other into an empty directory next to a RabbitMQ, do what it says.

The rules:

- A block whose first line is ``# NAME.py`` or ``# NAME.conf`` is written to that file.
- A ``bash`` block is pasted into a shell that stays the same for all of them. A command that fails, fails the test.
- A ``text`` block is what the ``bash`` block before it prints.
- A comment above a block may say ``test: in a terminal of its own`` (a shell of its own that goes on, with nothing of
  the other's environment; it has to print that it is ready) or ``test: left out, since ...``.
- The RabbitMQ of this test takes the place of ``rabbit://guest:guest@localhost:5672/``.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from oslo_config import cfg

import msgbus
from msgbus import exceptions
from msgbus.cli.errors import EXIT_CODES, code_of
from msgbus.options import list_opts
from tests.functional.brokers.rabbitmq import RabbitMQ

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
URL = "rabbit://guest:guest@localhost:5672/"
OWN_TERMINAL = "in a terminal of its own"
LEFT_OUT = "left out, since it installs packages"

BLOCK = re.compile(
    r"(?:<!-- test: (?P<rule>.*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"# (?P<name>\w+\.(?:py|conf))\n")


class Block(NamedTuple):
    """A block of the README."""

    kind: str
    text: str
    rule: str | None


def blocks() -> list[Block]:
    """All blocks of the README, in order."""
    return [Block(found["kind"], found["text"], found["rule"]) for found in BLOCK.finditer(README.read_text())]


class Terminal:
    """A shell that commands are pasted into."""

    def __init__(self, folder: pathlib.Path) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MSGBUS_")}
        env["PATH"] = f"{pathlib.Path(sys.executable).parent}:{env['PATH']}"
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._paste("trap 'echo \"FAILED with $?: $BASH_COMMAND\"' ERR\n")

    def _paste(self, text: str) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write(text)
        self.shell.stdin.flush()

    def _lines(self) -> Iterator[str]:
        assert self.shell.stdout is not None
        yield from iter(self.shell.stdout.readline, "")

    def run(self, text: str) -> str:
        """Paste commands, and return what they print."""
        self._paste(f"{text}\necho; echo END OF BLOCK\n")
        printed: list[str] = []
        for line in self._lines():
            assert not line.startswith("FAILED"), "".join([text, *printed, line])
            if line == "END OF BLOCK\n":
                break
            printed.append(line)
        return "".join(printed)[:-1]

    def run_until_ready(self, text: str) -> None:
        """Paste commands the last of which goes on, and return when it says that it is ready."""
        self._paste(text)
        printed: list[str] = []
        for line in self._lines():
            assert not line.startswith("FAILED"), "".join([text, *printed, line])
            if "is ready" in line:
                return
            printed.append(line)
        pytest.fail(f"it ended: {text}{''.join(printed)}")

    def close(self) -> None:
        """Stop the shell and what runs in it."""
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate()


@pytest.mark.timeout(240)
def test_all_blocks_work_when_pasted_in_order(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """Files, commands and the output that is shown: all as the README says."""
    printed = ""
    with ExitStack() as cleanup:
        terminal = Terminal(tmp_path)
        cleanup.callback(terminal.close)
        for block in blocks():
            text = block.text.replace(URL, rabbitmq.url)
            if block.rule == LEFT_OUT:
                continue
            if name := FILE.match(text):
                (tmp_path / name["name"]).write_text(text)
            elif block.kind == "text":
                assert printed == text
            elif block.rule == OWN_TERMINAL:
                other = Terminal(tmp_path)
                cleanup.callback(other.close)
                other.run_until_ready(text)
            else:
                printed = terminal.run(text)


def test_rules_of_blocks_are_known() -> None:
    """No block is left out by a comment that is mistyped, and every block is one that the test above can run."""
    found = blocks()
    assert README.read_text().count("```") == 2 * len(found)
    assert README.read_text().count("<!-- test:") == sum(block.rule is not None for block in found)
    for block in found:
        assert block.rule in (None, OWN_TERMINAL, LEFT_OUT)
        assert block.kind in ("bash", "text") or FILE.match(block.text)
    left_out = [block.text for block in found if block.rule == LEFT_OUT]
    assert left_out == ["examples/hello/run\n", left_out[1], "tests/run\n"]
    assert "pip install" in left_out[1]


def test_table_of_errors_is_complete() -> None:
    """Each error that a user can meet is there, with the exit code that the command has for it."""
    row = re.compile(r"^\| (?:\S )?`(?P<name>\w+)`:? \|.*\| (?P<code>\d?) ?\|$", re.MULTILINE)
    codes = {found["name"]: found["code"] for found in row.finditer(README.read_text())}
    names = {name for name, value in vars(exceptions).items() if isinstance(value, type) and name in msgbus.__all__}
    assert set(codes) == names - {"MessagingException"}
    for name, code in codes.items():
        error = getattr(exceptions, name).__new__(getattr(exceptions, name))
        error.maybe_delivered = False
        if name != "MessageDeliveryFailure":  # only its subclasses are raised
            assert str(int(code_of(error))) == code, name


def test_table_of_exit_codes_is_that_of_the_help() -> None:
    """Word for word."""
    for line in EXIT_CODES.splitlines():
        code, text = line.split(maxsplit=1)
        assert f"| {code} | {text} |" in README.read_text()


def test_configuration_of_the_example_names_real_options_and_their_defaults() -> None:
    """What a reader uncomments changes nothing yet, and is spelt as it has to be."""
    path = ROOT / "examples" / "hello" / "hello.conf"
    options = {(group or "DEFAULT", opt.name): opt for group, opts in list_opts() for opt in opts}
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(path)])
    msgbus.get_rpc_transport(conf).cleanup()
    group, shown = "", 0
    for line in path.read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            group = found[1]
        elif found := re.fullmatch(r"(#?)(\w+) = (.*)", line):
            opt = options[group, found[2]]
            if found[1] and opt.default is not None:
                assert str(opt.default).lower() == found[3], line
                shown += 1
    assert shown > 3


def test_example_runs(rabbitmq: RabbitMQ) -> None:
    """The client of the example with its two servers, without what `examples/hello/run` installs."""
    folder = ROOT / "examples" / "hello"
    url = f"export MSGBUS_URL={rabbitmq.url}"
    with ExitStack() as cleanup:
        for name in ("one", "two"):
            server = Terminal(folder)
            cleanup.callback(server.close)
            server.run_until_ready(
                f"{url}\nmsgbus serve server:Hello --topic hello --server {name} --config-file hello.conf\n"
            )
        client = Terminal(folder)
        cleanup.callback(client.close)
        printed = client.run(f"{url}\npython client.py\n").splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "call",
        "call, server two",
        *["multicall"] * 3,
        "the server raised ValueError",
        "no server listens at no-such-service",
    ]
