"""Queries and commands for a running Broker-J over AMQP management, which take milliseconds.

The operations are those of "AMQP Management Version 1.0" (OASIS, working draft 9); types, attributes and further
operations are those that the broker lists with GET-TYPES, GET-ATTRIBUTES and GET-OPERATIONS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.functional.brokers.processes import BrokerFailed

_SECONDS: Final = 30.0
_GOOD_BYE_SECONDS: Final = 0.5  # a broker that was killed does not answer
_VHOST: Final = "default"
# By that name for a virtual host the broker itself is asked. Who asks it is no connection of the virtual host.
_BROKER: Final = "$management"


class Request(NamedTuple):
    """One operation on one thing, for example ("DELETE", "Queue", {"index": "object-path", "key": "q"})."""

    operation: str
    kind: str
    properties: Mapping[str, str]
    body: Mapping[str, Any] = {}


class Answer(NamedTuple):
    """The answer to a request: a status like that of HTTP, its text, and the body."""

    status: int
    words: str
    body: Any


class Management:
    """Manages the virtual host "default" of a broker on 127.0.0.1, ``port``, as guest.

    Every method raises ``OSError`` if the broker cannot be asked or does not answer within 30 s, and ``BrokerFailed``
    with the broker's words if it refuses.
    """

    def __init__(self, port: int) -> None:
        self._management_port = port
        self._asker: _Asker | None = None

    def queues(self) -> dict[str, dict[str, Any]]:
        """Name -> durable, lifetime, messages, consumers.

        ``lifetime`` is as Broker-J calls it, PERMANENT or DELETE_ON_...
        """
        # By identity: the names of queues that the broker makes for links hold slashes, which part a path.
        listed = self._list("Queue", "name", "durable", "lifetimePolicy", "identity")
        facts = self.ask([Request("getStatistics", "Queue", {"identity": identity}) for *_, identity in listed])
        return {
            name: {
                "durable": durable is True,
                "lifetime": lifetime or "PERMANENT",
                "messages": int(answer.body["queueDepthMessages"]),
                "consumers": int(answer.body["consumerCount"]),
            }
            for (name, durable, lifetime, _), answer in zip(listed, facts, strict=True)
            if answer.status == 200  # else it is deleted while we ask
        }

    def queue_names(self) -> set[str]:
        """The names alone: one question, however many there are."""
        return {name for (name,) in self._list("Queue", "name", vhost=_BROKER)}

    def exchanges(self) -> dict[str, dict[str, Any]]:
        """Name -> type, durable, lifetime; without those that each virtual host has."""
        return {
            name: {"type": kind, "durable": durable is True, "lifetime": lifetime or "PERMANENT"}
            for name, kind, durable, lifetime in self._list(
                "Exchange", "name", "qpid-type", "durable", "lifetimePolicy"
            )
            if not name.startswith("amq.")
        }

    def connections(self) -> set[str]:
        """The names of the connections that are open, "[number] host:port" of the client."""
        path = _path(f"{_VHOST}/{_VHOST}")
        return set(_good(self.ask([Request("getConnections", "VirtualHost", path)], _BROKER))[0])

    def cut(self) -> None:
        """Have the broker close every connection."""
        listed = self._list("Connection", "name", "identity", vhost=_BROKER)
        found = self.connections()
        doomed = [Request("DELETE", "Connection", {"identity": identity}) for name, identity in listed if name in found]
        for answer in self.ask(doomed, _BROKER):
            if answer.status not in {204, 404}:  # 404: it does not exist any more
                raise BrokerFailed(f"a connection cannot be closed: {answer.status} {answer.words}")

    def create(self, kind: str, name: str, **attributes: object) -> None:
        """Create a "Queue", a "FanoutExchange" or the like."""
        _good(self.ask([Request("CREATE", kind, {}, {"name": name, **attributes})]))

    def delete(self, kind: str, name: str) -> None:
        """Delete a "Queue" or an "Exchange", even if it has messages or users."""
        _good(self.ask([Request("DELETE", kind, _path(name))]))

    def _list(self, kind: str, *attributes: str, vhost: str = _VHOST) -> list[list[Any]]:
        names = {"identity": "self", "entityType": f"org.apache.qpid.{kind}"}
        query = Request("QUERY", "org.amqp.management", names, {"attributeNames": list(attributes)})
        found: list[list[Any]] = _good(self.ask([query], vhost))[0]["results"]
        return found

    def ask(self, requests: Sequence[Request], vhost: str = _VHOST) -> list[Answer]:
        """What each of the requests comes to, in their order; no status raises."""
        # Only now: the tests of other message systems do without proton.
        from proton import ProtonException

        try:
            if vhost == _BROKER and self._asker is not None:
                try:
                    return self._asker.ask(requests)
                except ProtonException:  # The broker has been away since.
                    self.hang_up()
            asker = _Asker(self._management_port, vhost)
            try:
                answers = asker.ask(requests)
            except BaseException:
                asker.close()
                raise
            if vhost == _BROKER:  # Each check asks it, and to connect costs more than to ask.
                self._asker = asker
            else:
                asker.close()
            return answers
        except ProtonException as error:
            raise ConnectionError(f"the broker cannot be asked: {error}") from error

    def hang_up(self) -> None:
        """Close the connection that is kept."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None


class _Asker:
    """A connection that asks."""

    def __init__(self, port: int, vhost: str) -> None:
        from proton.utils import BlockingConnection

        # The types that proton ships do not fit what it does.
        self._connection: Any = BlockingConnection(
            f"amqp://127.0.0.1:{port}",
            timeout=_SECONDS,
            user="guest",
            password="guest",
            allow_insecure_mechs=True,
            virtual_host=vhost,
        )
        self._sender = self._connection.create_sender("$management")
        self._receiver = self._connection.create_receiver(None, dynamic=True, credit=100)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Send each, and wait for its answer."""
        answers = []
        for request in requests:
            self._sender.send(_message(request, str(self._receiver.link.remote_source.address)))
            answers.append(_receive(self._receiver))
        return answers

    def close(self) -> None:
        """Close it, broken or not."""
        from proton import ProtonException

        self._connection.timeout = _GOOD_BYE_SECONDS
        try:
            self._connection.close()
        except (ProtonException, OSError):
            pass


def _path(name: str) -> dict[str, str]:
    return {"index": "object-path", "key": name}


def _message(request: Request, reply_to: str) -> Any:
    from proton import Message

    kind = request.kind if "." in request.kind else f"org.apache.qpid.{request.kind}"
    properties = {"operation": request.operation, "type": kind, **request.properties}
    return Message(body=dict(request.body), properties=properties, reply_to=reply_to, correlation_id="1")


def _receive(receiver: Any) -> Answer:
    message = receiver.receive()
    receiver.accept()
    properties = message.properties
    return Answer(int(properties["statusCode"]), str(properties.get("statusDescription", "")), message.body)


def _good(answers: list[Answer]) -> list[Any]:
    """The bodies of the answers that are not refusals."""
    for answer in answers:
        if answer.status >= 300:
            raise BrokerFailed(f"{answer.status} {answer.words}")
    return [answer.body for answer in answers]
