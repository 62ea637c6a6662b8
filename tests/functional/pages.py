"""Runs the blocks of pages: pasted one after the other into an empty directory, they have to do what the page says.

The rules:

- A block whose first line is ``# NAME.py`` (or .conf, .ini, .toml) is written to that file.
- A ``bash`` block is pasted into a shell that stays the same for all of them. A command that fails, fails the test.
- A ``text`` block is what the ``bash`` block before it prints. In it three dots stand for anything within a line, and
  a line of three dots for any lines.
- An ``ini`` block is read as a configuration: its options exist, and its values fit.
- A comment above a block may say one of these:

  - ``test: in a terminal of its own``: a shell of its own that goes on, with nothing of the other's environment. It has
    to print that it is ready, or what uvicorn prints then. A name in front of it (``test: one, in a terminal of its
    own``) is for what follows.
  - ``test: in terminal NAME, after Ctrl-C``: what runs there is interrupted and has to end, then the block is pasted.
  - ``test: over RabbitMQ only``: it is pasted if the message system of the test is one.
  - ``test: left out, since ...``.

- The RabbitMQ of the test takes the place of ``rabbit://guest:guest@localhost:5672/``, and free ports that of 9464 and
  8080. mypy finds msgbus in this checkout, as it would where that is installed.
"""

from __future__ import annotations

import configparser
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from msgbus.options import list_opts
from tests.functional.brokers.processes import free_ports

ROOT = pathlib.Path(__file__).parents[2]
PORTS = ("9464", "8080")
"""Those of metrics and of health on the pages."""
PORT = re.compile(rf"\b(?:{'|'.join(PORTS)})\b")
URL = "rabbit://guest:guest@localhost:5672/"
OWN_TERMINAL = re.compile(r"(?:(?P<name>\w+), )?in a terminal of its own")
AFTER_INTERRUPT = re.compile(r"in terminal (?P<name>\w+), after Ctrl-C")
LEFT_OUT = re.compile(r"left out, since (?P<reason>.+)")
ONLY_RABBITMQ = "over RabbitMQ only"
RULES = (OWN_TERMINAL, AFTER_INTERRUPT, LEFT_OUT, re.compile(ONLY_RABBITMQ))
READY = re.compile("is ready|Uvicorn running on")

BLOCK = re.compile(
    r"(?:<!-- test: (?P<rule>.*?) -->\n)?^```(?P<kind>[\w{}-]*)(?: [^\n]*)?\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# (?P<name>\w+\.(?:py|conf|ini|toml))\n")


class Block(NamedTuple):
    """A block of a page."""

    kind: str
    text: str
    rule: str | None

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        found = FILE.match(self.text)
        return found["name"] if found else None

    @property
    def left_out(self) -> str | None:
        """Why it is not run."""
        found = LEFT_OUT.fullmatch(self.rule or "")
        return found["reason"] if found else None


def blocks(page: pathlib.Path) -> list[Block]:
    """All blocks of a page, in order, except Sphinx's directives, which its build checks."""
    found = [Block(found["kind"], found["text"], found["rule"]) for found in BLOCK.finditer(page.read_text())]
    return [block for block in found if not block.kind.startswith("{")]


class Terminal:
    """A shell that commands are pasted into."""

    def __init__(self, folder: pathlib.Path, run_dir: str = "") -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MSGBUS_")}
        if run_dir:
            env["XDG_RUNTIME_DIR"] = run_dir
        # The pages need pytest alone. Where this plugin is installed, it warns that it is not configured.
        env["PYTEST_ADDOPTS"] = "-p no:asyncio"
        env["MYPYPATH"] = str(ROOT)
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
        """Paste commands, the last of which keeps running, and return when it says that it is ready."""
        self._paste(text)
        printed: list[str] = []
        for line in self._lines():
            assert not line.startswith("FAILED"), "".join([text, *printed, line])
            if READY.search(line):
                return
            printed.append(line)
        pytest.fail(f"it ended: {text}{''.join(printed)}")

    def interrupt(self) -> None:
        """Press Ctrl-C, and return when what ran has ended."""
        for child in pathlib.Path(f"/proc/{self.shell.pid}/task/{self.shell.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGINT)
        self.run("")

    def close(self) -> None:
        """Stop the shell and what runs in it."""
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate()


def check_text(printed: str, shown: str) -> None:
    """Fail if the output differs from what a page shows."""
    if "..." not in shown:
        assert printed == shown
        return
    parts = [re.escape(line).replace(re.escape("..."), ".*") + "\n" for line in shown.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if part == ".*\n" else part for part in parts)
    assert re.fullmatch(pattern, printed), f"{printed}\n--- is not ---\n{shown}"


def run(page: pathlib.Path, folder: pathlib.Path, url: str) -> None:
    """Do what a page says, in an empty folder; `url` takes the place of its RabbitMQ.

    Where nothing is configured, processes meet in a folder of the page's own: sockets want a short path.
    """
    printed = ""
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    terminals: dict[str | None, Terminal] = {}
    with ExitStack() as cleanup:
        run_dir = cleanup.enter_context(TemporaryDirectory(prefix="msgbus-"))

        def new_terminal(name: str | None) -> Terminal:
            terminals[name] = Terminal(folder, run_dir)
            cleanup.callback(terminals[name].close)
            return terminals[name]

        terminal = new_terminal("")
        for block in blocks(page):
            text, rule = block.text.replace(URL, url), block.rule or ""
            text = PORT.sub(lambda found: ports[found[0]], text)
            if block.left_out or (rule == ONLY_RABBITMQ and not url.startswith("rabbit:")):
                continue
            if block.file:
                (folder / block.file).write_text(text)
            if block.kind == "ini":
                check_configuration(text)
            elif block.file:
                pass
            elif block.kind == "text":
                check_text(printed, text)
            elif found := OWN_TERMINAL.fullmatch(rule):
                new_terminal(found["name"]).run_until_ready(text)
            elif found := AFTER_INTERRUPT.fullmatch(rule):
                terminals[found["name"]].interrupt()
                terminals[found["name"]].run_until_ready(text)
            else:
                printed = terminal.run(text)


def check_configuration(text: str) -> None:
    """Fail where a text names an option that does not exist, or gives it a value that it cannot have."""
    options = {(group or "DEFAULT", opt.name): opt for group, opts in list_opts() for opt in opts}
    parsed = configparser.ConfigParser(interpolation=None, default_section="", strict=True)
    parsed.read_string(text)
    sections = {name: dict(section) for name, section in parsed.items() if section}
    assert sections
    for group, values in sections.items():
        for name, value in values.items():
            assert (group, name) in options, f"[{group}] {name}"
            options[group, name].type(value)


def check_rules(page: pathlib.Path) -> list[Block]:
    """Fail where a comment is mistyped, or a block is one that `run` cannot run. Returns the blocks that are left out.

    So no block is left out silently.
    """
    text, found = page.read_text(), blocks(page)
    assert text.count("```") == 2 * len(BLOCK.findall(text)), "a block has no end, or stands in a list"
    assert text.count("<!-- test:") == sum(block.rule is not None for block in found), "a rule without a block"
    for block in found:
        rule = block.rule
        assert rule is None or any(known.fullmatch(rule) for known in RULES), rule
        assert block.left_out or block.kind in ("bash", "text", "ini") or block.file, block
    return [block for block in found if block.left_out]
