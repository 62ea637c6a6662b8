"""Ironic, unchanged, does all that its API is asked for, over msgbus, and with either process on the stock driver."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from benchmarks.environments import PeerMissing
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.conftest import skip_or_fail
from tests.openstack import buses, ironic
from tests.openstack.buses import MSGBUS, STOCK, Bus
from tests.openstack.figures import Ironic, Report

# Installing it takes its time when it is done for the first time.
pytestmark = [pytest.mark.openstack, pytest.mark.timeout(900)]
NODE = "node-1"
PORT = {"address": "52:54:00:12:34:56"}


class Tour:
    """Asks for one thing after the other, and keeps what was done as it should be.

    Attributes:
        steps: that.
    """

    def __init__(self, service: ironic.Ironic) -> None:
        self._service = service
        self.steps: list[str] = []

    def expect(self, step: str, status: int, method: str, path: str, body: object = None) -> ironic.Answer:
        """Ask for something that is answered with this status."""
        answer = self._service.ask(method, path, body)
        assert answer.status == status, f"{step}: {answer}"
        self.steps.append(step)
        return answer

    def provision(self, step: str, verb: str, state: str) -> None:
        """Ask for a change of the node's state, and wait for that."""
        self.expect(step, 202, "PUT", f"nodes/{NODE}/states/provision", {"target": verb})
        self._service.wait_for(NODE, "provision_state", state)

    def power(self, step: str, target: str, state: str) -> None:
        """The same for its power."""
        self.expect(step, 202, "PUT", f"nodes/{NODE}/states/power", {"target": target})
        self._service.wait_for(NODE, "power_state", state)


def use(service: ironic.Ironic) -> list[str]:
    """Have a node made, deployed and deleted again, with errors in between. Returns what was done."""
    tour = Tour(service)
    node = tour.expect("create a node", 201, "POST", "nodes", {"name": NODE, "driver": "fake-hardware"}).body
    valid = tour.expect("validate", 200, "GET", f"nodes/{NODE}/validate").body
    assert {kind: it["result"] for kind, it in valid.items()}["power"] is True
    port = tour.expect("create a port", 201, "POST", "ports", PORT | {"node_uuid": node["uuid"]}).body
    tour.expect(
        "an error that is 409: a second port of one address", 409, "POST", "ports", {**PORT, "node_uuid": node["uuid"]}
    )
    tour.provision("manage", "manage", "manageable")
    tour.provision("provide", "provide", "available")
    tour.power("power on", "power on", "power on")
    tour.power("power off", "power off", "power off")
    device = f"nodes/{NODE}/management/boot_device"
    tour.expect("set the boot device", 204, "PUT", device, {"boot_device": "pxe", "persistent": False})
    found = tour.expect("get the boot device", 200, "GET", device).body
    assert found == {"boot_device": "pxe", "persistent": False}
    tour.expect("an error that is 400: a boot device that there is not", 400, "PUT", device, {"boot_device": "tape"})
    tour.provision("deploy", "active", "active")
    tour.expect("an error that is 409: delete a node that is in use", 409, "DELETE", f"nodes/{NODE}")
    tour.provision("undeploy", "deleted", "available")
    tour.expect("delete the port", 204, "DELETE", f"ports/{port['uuid']}")
    tour.expect("delete the node", 204, "DELETE", f"nodes/{NODE}")
    assert service.ask("GET", f"nodes/{NODE}").status == 404
    return tour.steps


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of the environment with Ironic."""
    try:
        return ironic.environment().python
    except PeerMissing as error:
        skip_or_fail(str(error))


@contextlib.contextmanager
def counted(bus: Bus) -> Iterator[tuple[Bus, Proxy | None]]:
    """A message system with something in front of it that counts connections."""
    if bus.port is None:
        yield bus, None
        return
    proxy = Proxy(bus.port)
    try:
        yield bus.through(proxy.port), proxy
    finally:
        proxy.close()


def judge(python: str, bus: Bus, api: str, conductor: str, folder: pathlib.Path, report: Report) -> None:
    """Have Ironic do everything, and end in good order."""
    with (
        counted(bus) as (counted_bus, proxy),
        ironic.Ironic(python, folder, counted_bus.urls[api], counted_bus.urls[conductor]) as service,
    ):
        steps = use(service)
        connections = None if proxy is None else proxy.connections
        service.stop()
        assert list(service.warnings()) == []
    report(Ironic(bus.name, api, conductor, steps, connections))


@pytest.mark.parametrize("conductor", [MSGBUS, STOCK])
@pytest.mark.parametrize("api", [MSGBUS, STOCK])
def test_ironic_on_rabbitmq(
    python: str, rabbitmq: RabbitMQ, api: str, conductor: str, tmp_path: pathlib.Path, report_figures: Report
) -> None:
    """It does everything with both processes on msgbus, with either of them on stock, and with both on stock."""
    judge(python, buses.rabbitmq(rabbitmq), api, conductor, tmp_path, report_figures)


def test_ironic_on_qpid(python: str, qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    judge(python, buses.qpid(qpid), MSGBUS, MSGBUS, tmp_path, report_figures)


def test_ironic_on_zeromq(python: str, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, without a broker."""
    judge(python, buses.zmq(tmp_path / "run"), MSGBUS, MSGBUS, tmp_path, report_figures)
