"""The examples do what their READMEs say. `tests.functional.pages` has the rules for the blocks of these."""

from __future__ import annotations

import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from msgbus.conformance.waiting import until
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.pages import ROOT, URL, check_rules, run
from tests.functional.services import Connect, serving

EXAMPLES = ROOT / "examples"
SECONDS = 60.0
"""How long a test waits for what happens at once, unless there is a bug."""
ON_THEIR_README = ["cache", "classic", "hello", "images", "jobs", "shop"]
"""What is tried by pasting its README."""
ELSEWHERE = {
    "compose": "test_deployments.py",
    "fastapi": "test_example_fastapi.py",
    "kubernetes": "test_deployments.py",
    "msgbus-nats": "test_conformance_nats.py",
    "msgbus-redis": "test_conformance_redis.py",
    "systemd": "test_deployments.py",
}
"""The test files of all others."""


def copy_of(example: str, folder: pathlib.Path, url: str) -> pathlib.Path:
    """The example in a folder of its own, configured for a message system as its README says."""
    copied = folder / example
    shutil.copytree(EXAMPLES / example, copied, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copied.glob("*.conf"):
        text = path.read_text().replace(URL, url)
        if url == "zmq://":
            text = text.replace("rpc_backend = kombu", "rpc_backend = zmq")
        else:
            text = text.replace("hosts = localhost:5672", f"hosts = {urlsplit(url).hostname}:{urlsplit(url).port}")
        path.write_text(text)
    return copied


@pytest.mark.timeout(240)
@pytest.mark.parametrize("example", ON_THEIR_README)
def test_works_without_a_message_system(example: str, tmp_path: pathlib.Path) -> None:
    """Its README, pasted in order: commands and the output that is shown."""
    run(EXAMPLES / example / "README.md", copy_of(example, tmp_path, "zmq://"), "zmq://")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("example", ON_THEIR_README)
def test_works_over_rabbitmq(example: str, rabbitmq_310: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """The same, with a RabbitMQ where the README has one."""
    run(EXAMPLES / example / "README.md", copy_of(example, tmp_path, rabbitmq_310.url), rabbitmq_310.url)


@pytest.mark.parametrize("example", ON_THEIR_README)
def test_rules_of_blocks_are_known(example: str) -> None:
    """Nothing in a README is left out, or written so that it cannot be run."""
    assert check_rules(EXAMPLES / example / "README.md") == []


def test_every_example_is_tested_and_listed() -> None:
    """It has a README, a test, and a line in the list of all."""
    examples = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name[0] not in "._")
    assert examples == sorted([*ON_THEIR_README, *ELSEWHERE])
    listed = re.findall(r"^\| \[(\S+)\]\(\1/README\.md\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == examples
    for test in ELSEWHERE.values():
        assert (pathlib.Path(__file__).parent / test).exists()


@pytest.mark.parametrize("readme", sorted(EXAMPLES.glob("**/README.md")), ids=lambda path: path.parent.name)
def test_links_lead_somewhere(readme: pathlib.Path) -> None:
    """Sphinx does not see these pages."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme.read_text())
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_ctrl_c_ends_drawing_on_the_server(connect: Connect, tmp_path: pathlib.Path) -> None:
    """The client of the pictures is interrupted half-way: its generator is closed, though hours of work are left."""
    url = f"zmq://{tmp_path}"
    images = runpy.run_path(str(EXAMPLES / "images" / "service.py"))["Images"]()
    command = [sys.executable, str(EXAMPLES / "images" / "client.py"), str(tmp_path / "large.pgm")]
    command += ["--width", "2000", "--height", "100000"]
    with serving(connect(url), "images", images):
        client = subprocess.Popen(command, env={"MSGBUS_URL": url}, stderr=subprocess.PIPE)
        try:
            until(lambda: (tmp_path / "large.pgm").exists() and images.drawing({}) == 1, "it is drawn", SECONDS)
            client.send_signal(signal.SIGINT)
            assert b"KeyboardInterrupt" in client.communicate(timeout=SECONDS)[1]
            until(lambda: images.drawing({}) == 0, "the generator is closed", SECONDS)
        finally:
            client.kill()
            client.wait()
