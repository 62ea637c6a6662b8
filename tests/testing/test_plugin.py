"""The pytest plug-in, in runs of its own."""

from __future__ import annotations

import pathlib
import subprocess
import sys

TESTS = """
import asyncio

import msgbus
import pytest


class Hello:
    def greet(self, ctxt, name):
        return f"Hello, {name}"


def test_server_and_client(msgbus_server, msgbus_client, msgbus_sent):
    msgbus_server("hello", Hello())
    assert msgbus_client("hello").call({}, "greet", name="Ada") == "Hello, Ada"
    assert msgbus_sent.expect("call", "greet").args == {"name": "Ada"}


def test_each_test_has_its_own(msgbus_client, msgbus_sent, msgbus_transport, msgbus_conf):
    assert msgbus_sent.requests == []
    with pytest.raises(msgbus.MessageUndeliverable):
        msgbus_client("hello").call({}, "greet", name="Ada")
    assert str(msgbus_transport.url) == msgbus_conf.transport_url


def test_faults(msgbus_server, msgbus_client, msgbus_faults):
    msgbus_server("hello", Hello())
    msgbus_faults.lose_next()
    with pytest.raises(msgbus.MessagingTimeout):
        msgbus_client("hello", timeout=0.5).call({}, "greet", name="Ada")


def test_asyncio(msgbus_bus):
    async def main():
        async with msgbus_bus.aio() as bus:
            await bus.serve("hello", Hello())
            return await bus.client("hello").call({}, "greet", name="Ada")

    assert asyncio.run(main()) == "Hello, Ada"
"""


def run(folder: pathlib.Path, text: str, *arguments: str) -> str:
    """What pytest prints that runs these tests, with warnings as errors, in a process of its own."""
    (folder / "test_it.py").write_text(text)
    (folder / "conftest.py").write_text('pytest_plugins = ["msgbus.testing.fixtures"]\n')
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_each_test_has_a_message_system_of_its_own(tmp_path: pathlib.Path) -> None:
    """With servers, clients, faults, and what was sent; also on an event loop."""
    assert "4 passed" in run(tmp_path, TESTS)


def test_fixtures_say_what_they_are(tmp_path: pathlib.Path) -> None:
    """``pytest --fixtures`` lists them, each with a docstring."""
    printed = run(tmp_path, TESTS, "--fixtures")
    named = [line for line in printed.splitlines() if line.startswith("msgbus_")]
    assert {line.split(" ")[0] for line in named} == {
        f"msgbus_{name}" for name in ("bus", "conf", "transport", "server", "client", "sent", "faults")
    }
    assert all(" -- " in line for line in named)
    described = printed.partition("msgbus_bus -- ")[2].partition("msgbus_faults -- ")[2].splitlines()[1]
    assert described.strip().endswith("see msgbus.testing.Faults.")
