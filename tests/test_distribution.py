"""What is released: a source distribution, and a wheel that works where nothing else is installed."""

from __future__ import annotations

import ast
import configparser
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.support import ROOT

HELLO = """
import sys

from oslo_config import cfg

import msgbus


class Hello:
    def greet(self, ctxt, name):
        return f"Hello, {name}"


conf = cfg.ConfigOpts()
conf([], default_config_files=[])
transport = msgbus.get_rpc_transport(conf, "fake://")
server = msgbus.get_rpc_server(transport, msgbus.Target(topic="hello", server="one"), [Hello()])
server.start()
client = msgbus.get_rpc_client(transport, msgbus.Target(topic="hello"), timeout=20)
print(client.call({}, "greet", name="Ada"))
server.stop()
server.wait(20)
transport.cleanup()
print(msgbus.__file__.startswith(sys.prefix))
"""
OF_EXTRAS = {
    *("cproton", "opentelemetry", "prometheus_client", "proton", "pytest", "redis"),
    *("eventlet", "oslo_messaging", "oslo_serialization"),  # imported where they run msgbus, which is never alone there
}
"""What the package imports of what only its extras bring."""
MISSING = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))"
UNREACHABLE = re.compile("Failed to establish|Name or service not known|Temporary failure|Network is unreachable")
"""What pip prints where it cannot reach its index."""


def sources() -> list[str]:
    """The files that belong to the project, without those that somebody has left among them."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    made = re.compile(r"__pycache__|\..*_cache|.*\.egg-info|build|dist|\.venv.*|\.tox")
    return [str(path) for path in found if not any(made.fullmatch(part) for part in path.parts[:-1])]


def imported() -> set[str]:
    """The top-level names that the package's modules import, also where they do so only when they need it."""
    names: set[str] = set()
    for path in (ROOT / "msgbus").rglob("*.py"):
        if "template" in path.parts:  # It is no part of the package, but copied.
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names)


def output_of(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    """What a command prints that has to succeed."""
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def version() -> str:
    """The version of setup.cfg."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return setup["metadata"]["version"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with both files, made of a copy of the sources."""
    folder = tmp_path_factory.mktemp("release")
    for name in sources():
        copied = folder / "sources" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copied)
    # Without isolation, so that only the test of the installation needs the package index.
    output_of(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", "sources", cwd=folder)
    return folder / "dist"


def test_files_are_complete(dist: pathlib.Path, version: str) -> None:
    """The names have the version; the one has all sources, the other the package with its entry points."""
    assert sorted(os.listdir(dist)) == [f"msgbus-{version}-py3-none-any.whl", f"msgbus-{version}.tar.gz"]
    output_of(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=dist)
    wanted = {name for name in sources() if not name.startswith(".")}
    with tarfile.open(dist / f"msgbus-{version}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in wanted - packed if not name.endswith(".gitignore")} == set()
    with zipfile.ZipFile(dist / f"msgbus-{version}-py3-none-any.whl") as wheel:
        installed = {name for name in wheel.namelist() if not name.startswith(f"msgbus-{version}.dist-info/")}
    assert installed == {name for name in wanted if name.startswith("msgbus/")} | {"msgbus_oslo.py"}


@pytest.mark.timeout(400)
def test_wheel_works_in_an_empty_environment(dist: pathlib.Path, version: str, tmp_path: pathlib.Path) -> None:
    """With what it requires and nothing more, the command says its version, and a call in memory is answered."""
    output_of(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    (wheel,) = dist.glob("*.whl")
    found = subprocess.run([*pip, "install", "--quiet", wheel], capture_output=True, text=True, check=False)
    if UNREACHABLE.search(found.stderr) and os.environ.get("CI") != "true":
        pytest.skip("the package index cannot be reached")
    assert found.returncode == 0, found.stderr
    assert output_of(*pip, "check", cwd=tmp_path) == "No broken requirements found.\n"
    assert output_of(python.with_name("msgbus"), "--version", cwd=tmp_path) == f"msgbus {version}\n"
    assert set(output_of(python, "-I", "-c", MISSING, *imported(), cwd=tmp_path).split()) == OF_EXTRAS
    (tmp_path / "hello.py").write_text(HELLO)
    # -I: what the environment of the tests says about paths does not count.
    assert output_of(python, "-I", "hello.py", cwd=tmp_path) == "Hello, Ada\nTrue\n"


def test_links_of_the_readme_work_on_a_package_index(tmp_path: pathlib.Path) -> None:
    """They are absolute once `project_urls` has an address. Before that, the release check has a command for it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    if "project_urls" not in setup["metadata"]:
        text = (ROOT / "RELEASING.md").read_text()
        assert "`project_urls`" in text
        [command] = re.findall(r"^sed .* README\.md$", text, re.MULTILINE)
        words = shlex.split(command.replace("REPOSITORY", "https://example.org/msgbus"))
        subprocess.run(words, cwd=tmp_path, check=True)
    links = re.findall(r"\]\(([^)]+)\)", readme.read_text())
    assert [link for link in links if "://" not in link] == []
    files = [re.sub(r"^https://.*?/(?:blob|raw)/main/|#.*", "", link) for link in links]
    assert "docs/start.md" in files
    assert [file for file in files if "://" not in file and not (ROOT / file).exists()] == []


def test_version_stands_in_one_place(version: str) -> None:
    """No module has it; who asks gets that of the installed distribution."""
    modules = [path for path in (ROOT / "msgbus").rglob("*.py") if "template" not in path.parts]
    assert [path for path in [*modules, ROOT / "docs" / "conf.py"] if f'"{version}"' in path.read_text()] == []
    assert not re.search(r"^version\b", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
