"""What msgbus says where gevent or eventlet has replaced threads and sockets. Each test has a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

URLS = ["fake://patched/", "zmq://?run_dir=/tmp/msgbus-never-made", "rabbit://guest:guest@127.0.0.1:1/"]
USE = """
    from oslo_config import cfg
    import msgbus
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    transports = {{}}
    for url in {urls}:
        try:
            transports[url] = msgbus.get_rpc_transport(conf, url)
        except msgbus.MessagingException as exc:
            print(url, type(exc).__name__, exc)
    {between}
    for url, transport in transports.items():
        client = msgbus.get_rpc_client(transport, msgbus.Target(topic="x"), timeout=5)
        for verb in client.call, client.cast:
            try:
                verb({{}}, "run")
            except msgbus.MessagingException as exc:
                print(url, verb.__name__, type(exc).__name__, exc)
"""
PATCHES = [
    ("gevent", "from gevent import monkey; monkey.patch_all()"),
    ("gevent", "from gevent import monkey; monkey.patch_all(thread=False)"),
    ("gevent", "from gevent import monkey; monkey.patch_thread()"),
    ("gevent", "from gevent import monkey; monkey.patch_socket()"),
    ("eventlet", "import eventlet; eventlet.monkey_patch()"),
    ("eventlet", "import eventlet; eventlet.monkey_patch(thread=False)"),
    ("eventlet", "import eventlet; eventlet.monkey_patch(all=False, thread=True)"),
]
HARMLESS = [
    ("gevent", "import gevent.monkey"),
    ("gevent", "from gevent import monkey; monkey.patch_time()"),
    ("eventlet", "import eventlet"),
    ("eventlet", "import eventlet; eventlet.monkey_patch(all=False, time=True)"),
]


def run(library: str, before: str, urls: list[str], between: str = "pass") -> list[str]:
    """The errors of a program, a line each."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = f"{before}\n{textwrap.dedent(USE.format(urls=urls, between=between))}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("library", "patch"), PATCHES)
def test_a_patched_interpreter_is_refused(library: str, patch: str) -> None:
    """Threads, select or sockets that were replaced are an error of ours at once, on every driver."""
    for url, line in zip(URLS, run(library, patch, URLS), strict=True):
        assert line.startswith(f"{url} ConfigurationError {library} has replaced")
        assert "a separate process" in line


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_late_patch_is_refused_at_first_use(library: str) -> None:
    """So are those that were replaced after the transport was made."""
    patch = next(patch for name, patch in PATCHES if name == library)
    lines = run(library, "", URLS, patch)
    for use, line in zip([f"{url} {verb}" for url in URLS for verb in ("call", "cast")], lines, strict=True):
        assert line.startswith(f"{use} ConfigurationError ")
        assert f"{library} has replaced" in line


@pytest.mark.parametrize(("library", "patch"), HARMLESS)
def test_what_msgbus_does_not_need_may_be_patched(library: str, patch: str) -> None:
    """That a library was imported, or has replaced something else, is no error."""
    for line in run(library, patch, URLS[:1]):
        assert "MessageUndeliverable" in line
