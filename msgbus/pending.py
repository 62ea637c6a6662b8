"""Pending: a call that waits, what it knows of its servers, and when it ends or has to be sent again.

Nothing here does I/O, starts a thread or looks at a clock: times are passed in (seconds of `Loop.now`), and a waiting
caller is woken through `Pending.wake`. So threads and event loops use the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar

import msgspec

from msgbus.drivers.base import Address, Message
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessagingException,
    MessagingTimeout,
    OutcomeUnknown,
    ServerLost,
    TransportUnavailable,
)
from msgbus.failures import rebuild_failure
from msgbus.foreign import get_logger
from msgbus.message import LOST_AFTER, Reply

LOG = get_logger(__name__)

REPEAT_AFTER = 2.0
"""Seconds of silence after this side's connection has come back, before an at_least_once request is sent again.

A server that runs it sends a keepalive as soon as its own connection is back. If the message system keeps requests on
disk, it is `LOST_AFTER`: a request that no server has begun is most likely still queued, and a copy would only add
work."""

VERDICT_WITHIN = 0.1
"""Seconds after its deadline for which a call waits for what the driver says of a request that it has not sent. The
driver gives it up at the deadline too, and knows why; on a busy machine it comes to that a moment later."""

Wake = Callable[[], None]


def nobody() -> None:
    """Stands in for `Pending.wake` while nobody waits."""


class RunningServer(msgspec.Struct):
    """A server that has said that it runs a call.

    Attributes:
        name: its name.
        last_sign: when it was last heard from.
    """

    name: str | None
    last_sign: float


class Pending(msgspec.Struct, eq=False):
    """A call that waits: what has come for it so far, and when it has to be checked again.

    Under at_most_once, and for a stream that has begun, the first server that says that it runs the call is the only
    one: others are cancelled. An at_least_once call may run on several servers: each of them counts, and the first
    answer ends the call. So the loss of one server never ends the work of another.

    The inbox's thread and the thread that waits use it at the same time: what both change is changed in single steps.

    Attributes:
        id: of the call.
        method: the method's name.
        address: where the request goes.
        began: when.
        deadline: when it ends.
        grace: the option ``rpc_reply_grace``.
        repeatable: the request may be sent again.
        monitor: seconds of silence after which the call ends before a server is known; None or 0: silence ends nothing.
        allowed_modules: those whose exceptions may be rebuilt.
        wake: called, on any thread, when there is something new.
        servers: those that run the call, by the inbox where each takes control frames.
        orphans: inboxes of further servers that began the same call: they are to be cancelled.
        request: the message to send again if it gets lost; None where it must not be sent again.
        sent: whether the message system has taken responsibility for the request.
        send_error: why the request could not be sent.
        last_sign: when any server was last heard from; 0 before that.
        for_many: several servers run it, and each of them answers.
    """

    for_many: ClassVar[bool] = False

    id: str
    method: str
    address: Address
    began: float
    deadline: float
    grace: float
    repeatable: bool
    monitor: float | None
    allowed_modules: Collection[str]
    wake: Wake = nobody
    servers: dict[str, RunningServer] = {}
    orphans: list[str] = []
    request: Message | None = None
    sent: bool = False
    send_error: BaseException | None = None
    last_sign: float = 0.0
    _awaits_verdict: bool = False  # The deadline has passed, and the driver has not said why nothing was sent.
    _taken_at: float | None = None  # when the message system took the request last; None while it is sent
    _repeat_at: float | None = None  # when it is due again, since the last server that ran it was lost
    _uncertain_since: float | None = None
    _unheard_since: float = 0.0  # since when nothing was heard of any server though this side was connected

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe}>"

    def __str__(self) -> str:
        return self.describe

    @property
    def describe(self) -> str:
        """Which method of which target, and the id that is in the logs: the beginning of every error's text."""
        return f"{self.method!r} on {self.address}, call {self.id}"

    @property
    def missing(self) -> str:
        """What has not come by the deadline, for the text of a timeout."""
        return f"no answer within {max(self.deadline - self.began, 0.0):.4g} s"

    @property
    def silence(self) -> str:
        """The same, if the call ends before its deadline since no server has shown life for `monitor` seconds."""
        return f"no sign of life of the server for {self.monitor:g} s"

    @property
    def server_inbox(self) -> str | None:
        """Where the server that runs the call takes control frames; of several, the first."""
        servers = list(self.servers)
        return servers[0] if servers else None

    def on_sent(self, error: BaseException | None, now: float) -> None:
        """Note how the sending of the request ended."""
        if error is None:
            self.sent = True
            self._taken_at = now
        elif self.servers:
            pass  # A server that runs it proves that it was delivered.
        elif isinstance(error, TransportUnavailable) and error.maybe_delivered and not self.repeatable:
            self._uncertain_since = now
            self.wake()
        else:
            self.send_error = error
            self.wake()

    def on_repeated(self, error: BaseException | None, now: float) -> None:
        """Note how a repeated sending of the request ended.

        An error changes nothing: the request was taken before, and a server may still have it.
        """
        if error is None:
            self._taken_at = now
            self.wake()
        else:
            LOG.info("%s could not be sent again: %s", self.describe, error)

    def on_reply(self, reply: Reply, now: float) -> None:
        """Handle a reply or another frame from a server."""
        if reply.kind == "declined":
            if not self.servers and self._uncertain_since is None:
                self._uncertain_since = now
                self.wake()
            return
        # Most calls are answered without that a server has said before that it runs them.
        if (reply.inbox is not None or self.servers) and not self._note_server(reply, now):
            return
        self.last_sign = now
        self._uncertain_since = None
        self._take(reply)

    def _note_server(self, reply: Reply, now: float) -> bool:
        """Note a sign of life. Returns False for a server that is to be cancelled."""
        inbox = reply.inbox
        if inbox is None:  # An answer, or a frame of a stream.
            for server in list(self.servers.values()):
                if server.name == reply.server:
                    server.last_sign = now
            return True
        if inbox in self.servers:
            self.servers[inbox].last_sign = now
            return True
        if self.servers and not self.repeatable:
            self.orphans.append(inbox)
            self.wake()
            return False
        self.servers[inbox] = RunningServer(reply.server, now)
        self._repeat_at = None
        self.wake()
        return True

    def on_unreadable(self, error: Exception, now: float) -> None:
        """Handle a reply that cannot be read: no readable one will follow."""
        self.send_error = error
        self.wake()

    def abandon(self, error: BaseException) -> None:
        """Fail with `error`, and forget the servers, so that they are not cancelled."""
        self.servers.clear()
        self.orphans.clear()
        self.send_error = error
        self.wake()

    def _take(self, reply: Reply) -> None:
        raise NotImplementedError

    def failure_of(self, reply: Reply) -> Exception | None:
        """The exception in a reply, if there is one."""
        return None if reply.failure is None else rebuild_failure(reply.failure, self.allowed_modules)

    def next_check(self) -> float:
        """When `check` or `needs_repeat` has to be asked again even if nothing arrives."""
        first = self.deadline + VERDICT_WITHIN if self._awaits_verdict else self.deadline
        if self.servers:
            first = min([first, *(self._lost_at(server) for server in list(self.servers.values()))])
        elif self.monitor:
            first = min(first, self._silent_since + self.monitor)
        if self._repeat_at is not None and self._taken_at is not None:
            first = min(first, self._repeat_at)
        if self._uncertain_since is not None:
            first = min(first, self._uncertain_since + self.grace)
        return first

    def _lost_at(self, server: RunningServer) -> float:
        """When a server counts as lost, if nothing more is heard of it while this side is connected."""
        return max(server.last_sign, self._unheard_since) + LOST_AFTER

    @property
    def _heard_at(self) -> float:
        """When any server was last heard from, or when the call began."""
        return max(self.last_sign, self.began)

    @property
    def _silent_since(self) -> float:
        """Since when there was no sign of life that could have come, before a server is known."""
        return max(self._heard_at, self._unheard_since)

    @property
    def ready(self) -> bool:
        """Whether the caller need not wait any longer."""
        raise NotImplementedError

    def update(self, now: float, up_since: float | None) -> None:
        """Note how long servers have been silent. Those that are lost are forgotten if others may answer.

        `up_since` is since when this side is connected; None while it is not.
        """
        self._unheard_since = max(self._unheard_since, now if up_since is None else up_since)
        for inbox, server in list(self.servers.items()):
            if self.repeatable and now >= self._lost_at(server):
                LOG.info("%s: server %r was lost", self.describe, server.name)
                self.servers.pop(inbox, None)
                if not self.servers:
                    self.last_sign = self._repeat_at = now

    def check(self, now: float) -> Exception | None:
        """Why there is nothing more to wait for, or None, as of the last `update`."""
        if self.send_error is not None:
            if isinstance(self.send_error, MessagingException):
                return self.send_error
            return MessageDeliveryFailure(f"{self.describe}: {self.send_error}")
        for server in list(self.servers.values()):
            if not self.repeatable and now >= self._lost_at(server):
                return self._server_lost(server, now)
        if self._uncertain_since is not None and now >= self._uncertain_since + self.grace:
            return OutcomeUnknown(
                f"{self.describe}: it may or may not have run. A server or connection was lost at a moment when the "
                f"request could have begun, nothing was heard for {self.grace:g} s, and under at_most_once it is not "
                "sent again. Where it may run twice, use delivery='at_least_once'"
            )
        if now >= self.deadline:
            is_known = self.sent or self.servers or self._uncertain_since is not None
            self._awaits_verdict = not is_known and now < self.deadline + VERDICT_WITHIN
            return None if self._awaits_verdict else MessagingTimeout(self.describe)
        if self.monitor and not self.servers and now >= self._silent_since + self.monitor:
            return MessagingTimeout(f"{self.describe}: {self.silence}")
        return None

    def needs_repeat(self, now: float, up_since: float | None, repeat_after: float) -> bool:
        """Whether the request has to be sent again.

        That is so if the message system took it, and no server has shown life since this side's connection has come
        back, or since the last server that ran it was lost. The message system may have lost the request or its answer,
        and a server that hangs keeps the request from the others. `repeat_after` is how many seconds of silence there
        have to be after a reconnect.
        """
        if not self.repeatable or self._taken_at is None or up_since is None:
            return False
        back = self._taken_at < up_since and self._heard_at < up_since and now >= up_since + repeat_after
        return back or (self._repeat_at is not None and now >= self._repeat_at)

    def on_checked(self, now: float, repeats: bool) -> None:
        """Note that `needs_repeat` was asked, and that the request is sent again if it said so."""
        if self._repeat_at is not None and now >= self._repeat_at:
            self._repeat_at = now + LOST_AFTER
        if repeats:
            self._taken_at = None

    def _server_lost(self, server: RunningServer, now: float) -> ServerLost:
        silent = now - server.last_sign
        return ServerLost(
            f"{self.describe}: server {server.name!r} had begun to run it and has been silent for {silent:.0f} s; "
            "it has died, or is cut off. The request may have run in part, and is not sent again under at_most_once"
        )


class PendingCall(Pending, kw_only=True):
    """Waits for one value.

    Attributes:
        answer: the reply that ended the call, once it is there.
        ready: whether it is.
    """

    answer: Reply | None = None
    ready: bool = False

    def _take(self, reply: Reply) -> None:
        if reply.ending and self.answer is None:
            self.answer = reply
            self.ready = True
            self.wake()
