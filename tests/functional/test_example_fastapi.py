"""The HTTP service of examples/fastapi and its msgbus server: processes, sockets and message systems are real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import msgbus
from msgbus.conformance.waiting import until
from tests.functional.brokers.processes import free_ports
from tests.functional.conftest import skip_or_fail
from tests.functional.pages import ROOT, check_rules, run
from tests.functional.services import Connect, serving

README = ROOT / "examples" / "fastapi" / "README.md"
SECONDS = 90.0
"""How long a test waits for what happens at once, unless there is a bug."""
LONG = "pages=600&seconds=600"
"""A report, or a print, that does not end by itself while a test waits."""
MANY = 2000


class Example:
    """The example's two processes, each of which starts when a test asks for it.

    Attributes:
        url: the transport URL of both.
        exchange: a scope of their own.
        service: the msgbus server, if it was started.
        port: of the HTTP service, if it was started.
    """

    def __init__(self, url: str, folder: pathlib.Path, cleanup: contextlib.ExitStack) -> None:
        self.url = url
        self.exchange = uuid.uuid4().hex
        self._folder = folder
        self._cleanup = cleanup
        self._logs: list[pathlib.Path] = []

    def start_service(self) -> None:
        self.service = self._start("service", "-m", "reports.service")
        self._until_logged("service", "is ready", self.service)

    def start_app(self) -> None:
        import httpx

        (self.port,) = free_ports(1)
        arguments = ("-m", "uvicorn", "reports.app:app", "--port", str(self.port))
        self.app = self._start("app", *arguments)
        self._until_logged("app", "Uvicorn running", self.app)
        self.http = self._cleanup.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=SECONDS))

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        # oslo.config reads options from the environment too.
        env = {**os.environ, "MSGBUS_URL": self.url, "OS_DEFAULT__CONTROL_EXCHANGE": self.exchange}
        with (self._folder / name).open("wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], env=env, stdout=log, stderr=log)
        self._cleanup.callback(process.wait)
        self._cleanup.callback(process.kill)
        return process

    def _until_logged(self, name: str, text: str, process: subprocess.Popen[bytes]) -> None:
        def logged() -> bool:
            assert process.poll() is None, self.log(name)
            return text in self.log(name)

        until(logged, f"{name} is ready", SECONDS)

    def log(self, name: str) -> str:
        """What a process has printed."""
        path = self._folder / name
        return path.read_text() if path.exists() else ""

    def until_running(self, count: int) -> None:
        """Return when the server runs so many requests."""
        until(lambda: self.http.get("/running").json() == count, f"{count} requests run", SECONDS)


@pytest.fixture(autouse=True)
def installed() -> None:
    """The example is there, with what it needs: a test fails or is skipped without it, and no other test is."""
    if find_spec("reports") is None or find_spec("httpx") is None:
        skip_or_fail("examples/fastapi is not installed: pip install './examples/fastapi[test]'")


@pytest.fixture(params=["zmq", "rabbitmq_310"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """ZeroMQ, and RabbitMQ."""
    if request.param == "zmq":
        return f"zmq://{tmp_path}"
    found: str = request.getfixturevalue(request.param).url
    return found


@pytest.fixture
def example(url: str, tmp_path: pathlib.Path) -> Iterator[Example]:
    """The example over a message system. At the end, nothing unforeseen is in the logs of its processes."""
    with contextlib.ExitStack() as cleanup:
        made = Example(url, tmp_path, cleanup)
        yield made
        assert [line for line in made.log("service").splitlines() if not line.endswith(" is ready")] == []
        foreseen = ("INFO: ", "a call failed: ")
        assert [line for line in made.log("app").splitlines() if not line.startswith(foreseen)] == []


@pytest.fixture
def running(example: Example) -> Example:
    """The example, with both processes started."""
    example.start_service()
    example.start_app()
    return example


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process and those that it starts may have enough connections at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MANY + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        skip_or_fail(f"{needed} file descriptors are needed, and ulimit -Hn is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def begin(port: int, request: str) -> Connection:
    """Send a request, for example ``GET /running``, on a connection of its own, and do not wait for the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def answer_of(connection: Connection) -> tuple[int, object]:
    """The status and the value of the answer."""
    reader, writer = connection
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


def hang_up(connection: Connection) -> None:
    """Close the connection, as a client does that is ended."""
    connection[1].close()


# Calls and event streams


def test_answers_of_async_and_plain_methods(running: Example) -> None:
    """The HTTP client gets what the server's methods return."""
    answer = running.http.post("/reports/invoice", params={"pages": 2})
    assert (answer.status_code, answer.json()) == (200, {"template": "invoice", "pages": 2})
    assert running.http.post("/prints", params={"pages": 2}).json() == 2


def test_events_arrive_while_the_generator_runs(running: Example) -> None:
    """Each item of the generator is an event, which is there before the next one is made."""
    with running.http.stream("GET", "/reports/yearbook/events", params={"pages": 600}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ['data: {"page": 1, "of": 600}', "", 'data: {"page": 2, "of": 600}']


def test_the_last_event_says_that_it_was_the_last(running: Example) -> None:
    """Otherwise a browser's EventSource would begin again."""
    lines = running.http.get("/reports/invoice/events", params={"pages": 2}).text.splitlines()
    assert lines == [
        'data: {"page": 1, "of": 2}',
        "",
        'data: {"page": 2, "of": 2}',
        "",
        "event: done",
        "data: 2",
        "",
    ]


# HTTP clients that hang up


@pytest.mark.parametrize("path", ["/reports/yearbook", "/prints"])
def test_a_client_that_hangs_up_cancels_the_work(running: Example, path: str) -> None:
    """An async method is cancelled, and a plain one is told so, minutes before they would end."""

    async def call_and_hang_up() -> None:
        connection = await begin(running.port, f"POST {path}?{LONG}")
        await asyncio.to_thread(running.until_running, 1)
        hang_up(connection)

    asyncio.run(call_and_hang_up())
    running.until_running(0)


def test_a_client_that_hangs_up_at_once_cancels_the_work(running: Example) -> None:
    """Even if nobody has said yet that the server runs it."""

    async def call_and_hang_up() -> None:
        for _ in range(20):
            hang_up(await begin(running.port, f"POST /reports/yearbook?{LONG}"))

    asyncio.run(call_and_hang_up())
    assert running.http.post("/reports/invoice", params={"pages": 1}).status_code == 200
    running.until_running(0)


def test_closing_the_event_stream_closes_the_generator(running: Example) -> None:
    """Its `finally` runs, though it would yield for minutes."""
    with running.http.stream("GET", "/reports/yearbook/events", params={"pages": 600}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == 'data: {"page": 1, "of": 600}'
        running.until_running(1)
    running.until_running(0)


# Load


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("many_descriptors")
def test_many_requests_are_in_flight_at_once(example: Example) -> None:
    """2,000 HTTP requests run on the server at the same time, next to others; all are cancelled by hanging up."""
    example.start_service()
    example.start_app()

    async def call_and_hang_up() -> None:
        connections = [await begin(example.port, f"POST /reports/yearbook?{LONG}") for _ in range(MANY)]
        await asyncio.to_thread(example.until_running, MANY)
        assert example.http.post("/reports/invoice", params={"pages": 1}).status_code == 200
        for connection in connections:
            hang_up(connection)

    asyncio.run(call_and_hang_up())
    example.until_running(0)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("many_descriptors")
def test_many_requests_are_answered(example: Example) -> None:
    """2,000 HTTP requests on as many connections: each gets its own answer."""
    example.start_service()
    example.start_app()

    async def call_all() -> list[tuple[int, object]]:
        requests = [f"POST /reports/invoice?pages={1 + number % 20}&seconds=300" for number in range(MANY)]
        connections = [await begin(example.port, request) for request in requests]
        return [await answer_of(connection) for connection in connections]

    expected = [(200, {"template": "invoice", "pages": 1 + number % 20}) for number in range(MANY)]
    assert asyncio.run(call_all()) == expected


# What fails


def test_nobody_serves(example: Example) -> None:
    """503 while no server was started, at once; when one is, the service goes on without a restart."""
    example.start_app()
    answer = example.http.post("/reports/invoice", params={"pages": 1})
    assert (answer.status_code, answer.json()) == (503, {"detail": "MessageUndeliverable"})
    example.start_service()
    assert example.http.post("/reports/invoice", params={"pages": 1}).status_code == 200


def test_no_answer_in_time(running: Example) -> None:
    """504, and the server does not go on with it."""
    answer = running.http.post("/reports/yearbook", params={"pages": 600, "seconds": 0.5})
    assert (answer.status_code, answer.json()) == (504, {"detail": "MessagingTimeout"})
    running.until_running(0)


def test_an_error_that_both_sides_know(running: Example) -> None:
    """Of a call it is a status, with its text; of an event stream, the last event."""
    detail = "there is no template 'novel'; there are invoice, yearbook"
    answer = running.http.post("/reports/novel")
    assert (answer.status_code, answer.json()) == (404, {"detail": detail})
    event, data = running.http.get("/reports/novel/events").text.splitlines()[:2]
    assert event == "event: failed"
    assert json.loads(data.removeprefix("data: ")) == {"status": 404, "detail": detail}


def test_methods_that_raise(example: Example, connect: Connect) -> None:
    """502 for whatever the method raised, and for a server that has no such method. The text is for the log."""

    class Unfinished:
        def write(self, ctxt: object, template: str, pages: int) -> None:
            raise subprocess.SubprocessError("secret") if template == "foreign" else KeyError("secret")

    transport = connect(example.url, control_exchange=example.exchange)
    example.start_app()
    with serving(transport, "reports", Unfinished()):
        found = [example.http.post(path) for path in ("/reports/foreign", "/reports/builtin", "/prints")]
    details = [(answer.status_code, answer.json()["detail"]) for answer in found]
    assert details == [(502, "RemoteError"), (502, "KeyError"), (502, "NoSuchMethod")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (msgbus.MessageTooLarge("secret"), 413),
        (msgbus.MessageUndeliverable("secret"), 503),
        (msgbus.TransportUnavailable("secret"), 503),
        (msgbus.TransportBlocked("secret"), 503),
        (msgbus.CallCancelled("secret"), 503),
        (msgbus.OutcomeUnknown("secret"), 504),
        (msgbus.MessagingTimeout("secret"), 504),
        (msgbus.ServerLost("secret"), 504),
        (msgbus.NoSuchMethod("secret"), 502),
        (msgbus.InvalidArguments("secret"), 502),
        (msgbus.RemoteError("Foreign", "secret"), 502),
        (ZeroDivisionError("secret"), 502),
        (TimeoutError("secret"), 502),
        (msgbus.SerializationError("secret"), 500),
        (msgbus.InvalidTarget("secret", "secret"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_status_of_an_error(error: Exception, status: int) -> None:
    """It says whose fault it is; the text goes to the HTTP client only if it is the client's."""
    from reports.errors import as_http

    found = as_http(error)
    assert found.status_code == status
    assert (found.detail == str(error)) == (status < 500)
    assert ("secret" in found.detail) == (status < 500)


def test_a_server_that_is_stopped_answers_what_it_runs(running: Example) -> None:
    """SIGTERM to the msgbus server: the HTTP client that waits still gets its answer, and the server ends with 0."""

    async def call_and_stop() -> tuple[int, object]:
        connection = await begin(running.port, "POST /reports/yearbook?pages=3&seconds=60")
        await asyncio.to_thread(running.until_running, 1)
        running.service.send_signal(signal.SIGTERM)
        return await answer_of(connection)

    assert asyncio.run(call_and_stop()) == (200, {"template": "yearbook", "pages": 3})
    assert running.service.wait(SECONDS) == 0


def test_the_http_service_is_stopped(running: Example) -> None:
    """SIGTERM to uvicorn: it closes the transport, and nothing is complained about."""
    assert running.http.get("/running").json() == 0
    running.http.close()
    running.app.send_signal(signal.SIGTERM)
    assert running.app.wait(SECONDS) == -signal.SIGTERM
    assert "Application shutdown complete" in running.log("app")


# The page


def test_readme_works_when_pasted(url: str, tmp_path: pathlib.Path) -> None:
    """The two processes and the commands, with the output that is shown."""
    if shutil.which("curl") is None:
        skip_or_fail("there is no curl: apt-get install curl")
    assert [block.text for block in check_rules(README)] == ["pip install . ./examples/fastapi\n"]
    page = tmp_path / "README.md"
    page.write_text(README.read_text().replace("8000", str(free_ports(1)[0])))
    folder = tmp_path / "empty"
    folder.mkdir()
    run(page, folder, url)


def test_readme_is_short() -> None:
    """It is read before anything is tried."""
    assert len(README.read_text().splitlines()) <= 40
