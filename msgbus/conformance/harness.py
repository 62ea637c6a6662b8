"""Harness: how the suite reaches a message system, and disturbs it."""

from __future__ import annotations

from typing import Literal, NamedTuple

World = Literal["threading", "asyncio"]
"""What clients or servers are made for: those of `msgbus` for threads, those of `msgbus.aio` for an event loop."""


class Worlds(NamedTuple):
    """Which clients and servers the checks of the whole bus are run with."""

    clients: World = "threading"
    servers: World = "threading"


THREADS = Worlds()


class Harness:
    """Subclass it, set `url`, and override the methods that your message system allows. Others are not used.

    Attributes:
        url: the transport URL. The suite sends arbitrary messages there: no service should use it.
        processes: whether several processes can share the message system. If not, the suite's servers run as threads
            of the test's process, and checks that kill a server are skipped.
        largest: the size in bytes of the largest message that it takes with this URL.
    """

    url: str
    processes: bool = True
    largest: int = 16 * 1024 * 1024

    def stop(self) -> None:
        """Stop the message system, and return when it has stopped. It keeps its address and its durable messages."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it again, and return when it accepts connections."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it abruptly, as if its machine failed, and return when it has ended."""
        raise NotImplementedError

    def cut(self) -> None:
        """Break all connections to it at once. New ones are accepted as before."""
        raise NotImplementedError

    def pause(self) -> None:
        """Make it stop answering, while its connections stay open, like a machine that hangs."""
        raise NotImplementedError

    def resume(self) -> None:
        """End the pause."""
        raise NotImplementedError

    def partition(self) -> None:
        """Break all connections to it and let no new one through, while it keeps running."""
        raise NotImplementedError

    def heal(self) -> None:
        """End the partition."""
        raise NotImplementedError

    def leftovers(self) -> set[str]:
        """What exists now and should be removed with its owner: connections, inboxes, queues of fanouts.

        The suite compares this before and after each check.
        """
        return set()

    def close(self) -> None:
        """Stop what the harness itself has started. ``msgbus conformance`` calls it at the end."""

    def can(self, *names: str) -> bool:
        """Whether the methods of these names are overridden."""
        return all(getattr(type(self), name) is not getattr(Harness, name) for name in names)
