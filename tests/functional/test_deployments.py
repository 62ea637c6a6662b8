"""The deployments of examples/shop are well-formed, and what they run works; containers and a cluster are not tried."""

from __future__ import annotations

import configparser
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

from msgbus.conformance.waiting import until
from tests.functional.brokers.processes import free_ports
from tests.functional.conftest import skip_or_fail
from tests.functional.pages import ROOT, check_rules

EXAMPLES = ROOT / "examples"
COMPOSE = EXAMPLES / "compose" / "compose.yaml"
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
UNITS = sorted((EXAMPLES / "systemd").glob("shop*"))
BIN = pathlib.Path(sys.executable).parent
HEALTH = "8080"
"""The port of the probes in the deployments."""
ORDER = "msgbus call orders place item=tea count=3 to=ada@example.com"
SECONDS = 90.0
"""How long a test waits for what happens at once, unless there is a bug."""


class Service(NamedTuple):
    """What a deployment starts: a command, the paths that it asks for health, and the seconds that a stop may take."""

    command: list[str]
    probes: list[str]
    grace: int

    @property
    def drain(self) -> float:
        """The seconds that the command gives to what runs."""
        return float(self.command[self.command.index("--drain") + 1])


def in_compose() -> list[Service]:
    """All services of compose.yaml but the RabbitMQ."""
    found = yaml.safe_load(COMPOSE.read_text())["services"]
    services = []
    for service in found.values():
        if "command" in service:
            asked = re.findall(rf"http://localhost:{HEALTH}(/\w+)", " ".join(service["healthcheck"]["test"]))
            services.append(Service(service["command"], asked, int(service["stop_grace_period"].removesuffix("s"))))
    return services


def in_systemd() -> list[Service]:
    """A server of each unit."""
    services = []
    for path in UNITS:
        if path.suffix == ".service":
            unit = configparser.ConfigParser(interpolation=None, strict=True)
            unit.read_string(path.read_text())
            command = shlex.split(unit["Service"]["ExecStart"].replace("%H-%i", "host-one"))
            services.append(Service(["msgbus", *command[1:]], [], int(unit["Service"]["TimeoutStopSec"])))
    return services


def in_kubernetes() -> list[Service]:
    """A pod of each deployment."""
    services = []
    for path in MANIFESTS:
        pod = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        command = [word.replace("$(POD_NAME)", f"{path.stem}-1") for word in container["command"]]
        (port,) = container["ports"]
        assert str(port["containerPort"]) == HEALTH
        probes = [container[kind]["httpGet"] for kind in ("readinessProbe", "livenessProbe")]
        assert {probe["port"] for probe in probes} == {port["name"]}
        services.append(Service(command, [probe["path"] for probe in probes], pod["terminationGracePeriodSeconds"]))
    return services


DEPLOYMENTS: dict[str, Callable[[], list[Service]]] = {
    "compose": in_compose,
    "systemd": in_systemd,
    "kubernetes": in_kubernetes,
}


class Started:
    """A service that runs as a process of the test's own."""

    def __init__(self, service: Service, url: str, log: pathlib.Path, cleanup: ExitStack) -> None:
        (self.port,) = free_ports(1)
        self._log = log
        command = [str(self.port) if word == HEALTH else word for word in service.command]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=EXAMPLES / "shop", env=environment(url), stdout=output, stderr=output
            )
        cleanup.callback(self.process.wait)
        cleanup.callback(self.process.kill)

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def is_ready(self) -> bool:
        """Whether it says so; fails if it has ended."""
        assert self.process.poll() is None, self.log
        return "is ready" in self.log

    def answers(self, path: str) -> bool:
        """Whether a probe succeeds."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False


def environment(url: str) -> dict[str, str]:
    """That of a process with a message system."""
    return {**os.environ, "MSGBUS_URL": url, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(params=["zmq", "rabbitmq_310"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """ZeroMQ, and RabbitMQ."""
    if request.param == "zmq":
        return f"zmq://{tmp_path}"
    found: str = request.getfixturevalue(request.param).url
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_commands_serve_and_end(deployment: str, url: str, tmp_path: pathlib.Path) -> None:
    """The three commands start, answer their probes, serve the order of the README, and end with 0 on SIGTERM."""
    with ExitStack() as cleanup:
        started = [
            (service, Started(service, url, tmp_path / f"log-{number}", cleanup))
            for number, service in enumerate(DEPLOYMENTS[deployment]())
        ]
        assert len(started) == 3
        for service, running in started:
            until(running.is_ready, "it is ready", SECONDS)
            for path in service.probes:
                until(lambda: running.answers(path), f"{path} of {service.command} answers 200", SECONDS)  # noqa: B023
        order = subprocess.run(
            shlex.split(ORDER), env=environment(url), capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert (order.stdout, order.stderr) == ('"ordered; 7 left"\n', "")
        mail = "to ada@example.com: You have ordered 3 of tea.\n"
        until(lambda: any(mail in running.log for _, running in started), "the mail is sent", SECONDS)
        for _, running in started:
            running.process.send_signal(signal.SIGTERM)
        assert [running.process.wait(SECONDS) for _, running in started] == [0, 0, 0]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_services_have_time_to_drain(deployment: str) -> None:
    """Whoever stops a service waits longer than it waits for what runs; the probes are those that there are."""
    for service in DEPLOYMENTS[deployment]():
        assert service.grace >= service.drain + 30
        assert set(service.probes) <= {"/ready", "/live"}
        assert bool(service.probes) == (HEALTH in service.command)


def test_compose_leads_to_its_rabbitmq() -> None:
    """The URL of the services names the service, the user and the password that are there."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    rabbitmq = services.pop("rabbitmq")["environment"]
    for service in services.values():
        password = rabbitmq["RABBITMQ_DEFAULT_PASS"]
        found = urlsplit(service["environment"]["MSGBUS_URL"].replace(password, "s3cret"))
        assert (found.username, found.password) == (rabbitmq["RABBITMQ_DEFAULT_USER"], "s3cret")
        assert (found.hostname, found.port) == ("rabbitmq", 5672)
        assert service["depends_on"]["rabbitmq"]["condition"] == "service_healthy"


def test_image_is_made_of_what_it_copies(tmp_path: pathlib.Path) -> None:
    """The wheel is built of what the Dockerfile copies, the service is there, and all deployments use the image."""
    text = (EXAMPLES / "compose" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *names, folder = line.split()
        for name in names:
            copied = tmp_path / folder.strip("/")
            copied.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copied)
    assert [path.name for path in (tmp_path / "srv" / "shop").iterdir()] == ["shop.py"]
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "wheels"))
    code, printed = output_of(*command, str(tmp_path / "src"))
    assert code == 0, printed
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as files:
        assert {"msgbus/__init__.py", "msgbus/drivers/kombu/__init__.py"} <= set(files.namelist())
    images = re.findall(r"image: (shop\S*)", "".join(path.read_text() for path in [COMPOSE, *MANIFESTS]))
    assert len(images) == 4
    assert set(images) == set(re.findall(r"--tag (\S+)", text))


# What is well-formed, and that mistakes are found


def output_of(*command: str, **env: str) -> tuple[int, str]:
    """The exit code and what a tool prints."""
    found = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    return found.returncode, found.stdout + found.stderr


def check_compose(path: pathlib.Path) -> None:
    """Compare a file with the schema of the Compose Specification."""
    tool = BIN / "check-jsonschema"
    if not tool.exists():
        skip_or_fail("check-jsonschema is not installed: pip install check-jsonschema")
    code, printed = output_of(str(tool), "--builtin-schema", "vendor.compose-spec", str(path))
    assert code == 0, printed


def check_manifest(path: pathlib.Path) -> None:
    """Compare a manifest with the schemas of Kubernetes."""
    tool = BIN / "kubernetes-validate"
    if not tool.exists():
        skip_or_fail("kubernetes-validate is not installed: pip install kubernetes-validate")
    code, printed = output_of(str(tool), "--strict", str(path))
    assert code == 0, printed


def check_units(folder: pathlib.Path) -> None:
    """Have systemd read the units of a folder, with the program that they start where it is on this machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("/srv/shop/venv/bin/msgbus", str(BIN / "msgbus")))
    for path in folder.glob("*@.service"):
        (folder / path.name.replace("@", "@one")).write_text(path.read_text())
    units = [str(path) for path in folder.iterdir() if not path.name.endswith("@.service")]
    assert output_of("systemd-analyze", "--man=no", "verify", *units) == (0, "")


@pytest.fixture
def units(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a copy of the units."""
    folder = tmp_path / "units"
    folder.mkdir()
    for path in UNITS:
        if path.suffix != ".env":
            shutil.copy(path, folder)
    return folder


def test_compose_file_is_well_formed() -> None:
    """As its public schema says; and as Docker Compose reads it, where that is installed."""
    check_compose(COMPOSE)
    if shutil.which("docker") is not None and output_of("docker", "compose", "version")[0] == 0:
        command = ("docker", "compose", "--file", str(COMPOSE), "config", "--quiet")
        assert output_of(*command, RABBITMQ_PASSWORD="s3cret") == (0, "")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_is_well_formed(path: pathlib.Path) -> None:
    """It has no field that Kubernetes does not know."""
    check_manifest(path)


def test_units_are_well_formed(units: pathlib.Path) -> None:
    """As systemd says."""
    check_units(units)


def test_mistakes_are_found(units: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A field that is mistyped fails each of the tests above."""

    def mistyped(path: pathlib.Path, right: str, wrong: str) -> pathlib.Path:
        copied = tmp_path / path.name
        assert right in path.read_text()
        copied.write_text(path.read_text().replace(right, wrong))
        return copied

    checks: list[tuple[Callable[[pathlib.Path], Any], pathlib.Path]] = [
        (check_compose, mistyped(COMPOSE, "stop_grace_period:", "stop_grace:")),
        (check_manifest, mistyped(MANIFESTS[0], "readinessProbe:", "readyProbe:")),
    ]
    for check, path in checks:
        with pytest.raises(AssertionError):
            check(path)
    shutil.copy(mistyped(units / "shop-stock.service", "RestartSec=", "RestartSeconds="), units)
    with pytest.raises(AssertionError):
        check_units(units)


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_readme_leaves_out_what_needs_a_system_alone(deployment: str) -> None:
    """Its one block is for Docker, systemd or Kubernetes; where it has an order, it is that of the test above."""
    page = EXAMPLES / deployment / "README.md"
    (block,) = check_rules(page)
    assert "; another test " in str(block.left_out)
    assert deployment == "systemd" or ORDER in block.text
