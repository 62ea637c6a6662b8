"""msgbus.aio in tests that pytest-asyncio or anyio's plugin runs, as users write them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.support import EVENT_TIMEOUT

TESTS = """
import pytest
from oslo_config import cfg

from msgbus import Target, aio

{head}

class Hello:
    async def greet(self, ctxt, name):
        return f"Hello, {{name}}"


@{fixture}
async def client(tmp_path):
    conf = cfg.ConfigOpts()
    conf([], project="none", default_config_files=[], default_config_dirs=[])
    host = tmp_path if '{scheme}' == 'zmq' else 'plugins/'
    async with aio.get_rpc_transport(conf, f"{scheme}://{{host}}") as transport:
        async with aio.get_rpc_server(transport, Target(topic="hello", server="one"), [Hello()]):
            yield aio.get_rpc_client(transport, Target(topic="hello"), timeout=20)


@pytest.mark.parametrize("name", ["Ada", "Bob"])
async def test_greet(client, name):
    assert await client.call({{}}, "greet", name=name) == f"Hello, {{name}}"
"""

ASYNCIO = ("pytestmark = pytest.mark.asyncio\nimport pytest_asyncio", "pytest_asyncio.fixture", "pytest_asyncio.plugin")
ANYIO = (
    "pytestmark = pytest.mark.anyio\n\n@pytest.fixture(params=['asyncio', ('asyncio', {'use_uvloop': True})])\n"
    "def anyio_backend(request):\n    return request.param\n",
    "pytest.fixture",
    "anyio.pytest_plugin",
)


@pytest.mark.parametrize("scheme", ["fake", "zmq"])
@pytest.mark.parametrize(
    ("head", "fixture", "plugin", "tests"), [(*ASYNCIO, 2), (*ANYIO, 4)], ids=["pytest-asyncio", "anyio"]
)
def test_the_plugin_runs_tests_and_fixtures_with_msgbus(
    tmp_path: pathlib.Path, scheme: str, head: str, fixture: str, plugin: str, tests: int
) -> None:
    """A fixture opens transport and server, and each test calls: with warnings as errors, on asyncio and uvloop."""
    # Braces in the head are the code's own.
    (tmp_path / "test_it.py").write_text(TESTS.format(head=head, fixture=fixture, scheme=scheme))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    options = [
        "-q",
        "-p",
        plugin,
        "-p",
        "no:cacheprovider",
        f"--basetemp=/tmp/msgbus-{tmp_path.parent.name[-6:]}{scheme}",
    ]
    if "asyncio" not in plugin:  # Its option is unknown then.
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * EVENT_TIMEOUT,
        check=False,
    )
    assert f"{tests} passed" in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0
