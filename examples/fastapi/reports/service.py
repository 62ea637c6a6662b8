"""The msgbus server, which writes reports: ``python -m reports.service``. Run as many as you need."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import msgbus
from msgbus import aio
from reports.bus import TOPIC, NoSuchTemplate, open_transport

SECONDS_A_PAGE = {"invoice": 0.1, "yearbook": 1.0}
"""The templates, and how long they take."""

Context = dict[str, Any]


class Reports:
    """A method gets the caller's context first, then its arguments by name."""

    def __init__(self) -> None:
        self._running = 0
        self._lock = threading.Lock()  # Plain methods run on threads.

    @msgbus.expected_exceptions(NoSuchTemplate)
    async def write(self, ctxt: Context, template: str, pages: int) -> dict[str, Any]:
        """An async method: if its caller goes away, it is cancelled where it waits."""
        with self._counted():
            for _ in range(pages):
                await self._write_page(template)
        return {"template": template, "pages": pages}

    @msgbus.expected_exceptions(NoSuchTemplate)
    async def write_pages(self, ctxt: Context, template: str, pages: int) -> AsyncIterator[dict[str, int]]:
        """A generator: each item is sent at once. If its caller goes away, it is closed."""
        with self._counted():
            for page in range(1, pages + 1):
                await self._write_page(template)
                yield {"page": page, "of": pages}

    def print_pages(self, ctxt: Context, pages: int) -> int:
        """A plain method: it may block, since it runs on a thread, and has to ask whether its caller went away."""
        with self._counted():
            for page in range(pages):
                if msgbus.current_request().cancelled:
                    return page
                time.sleep(0.1)  # in place of a printer
        return pages

    async def running(self, ctxt: Context) -> int:
        """How many requests run now."""
        return self._running

    async def _write_page(self, template: str) -> None:
        if template not in SECONDS_A_PAGE:
            raise NoSuchTemplate(f"there is no template {template!r}; there are {', '.join(SECONDS_A_PAGE)}")
        await asyncio.sleep(SECONDS_A_PAGE[template])  # in place of a database, or another service

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1


async def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    target = msgbus.Target(topic=TOPIC, server=f"{socket.gethostname()}-{os.getpid()}")
    async with open_transport() as transport:
        server = aio.get_rpc_server(transport, target, [Reports()])
        await server.start()
        print(f"server {target.server} is ready", flush=True)
        await stop.wait()
        await server.wait(30)  # It takes no new requests. Those that run have 30 seconds, then they are cancelled.


if __name__ == "__main__":
    asyncio.run(main())
