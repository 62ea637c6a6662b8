"""Queries and commands for a running RabbitMQ node, which take milliseconds."""

from __future__ import annotations

import json
import pathlib
import socket
import struct
from typing import Any, Final

from tests.functional.brokers.processes import BrokerFailed, poll

# The share of the machine's memory above which a node raises its alarm.
WATERMARK: Final = "0.6"

# A queue that is deleted while we ask is left out.
_QUEUES: Final = """
Items = [durable, auto_delete, exclusive, messages, messages_ready, messages_unacknowledged, consumers],
maps:from_list(lists:flatmap(fun(Queue) ->
    try
        {resource, _, queue, Name} = amqqueue:get_name(Queue),
        Arguments = [{Key, Value} || {Key, _, Value} <- amqqueue:get_arguments(Queue),
                     is_binary(Value) orelse is_number(Value) orelse is_boolean(Value)],
        Facts = maps:from_list(rabbit_amqqueue:info(Queue, Items)),
        [{Name, Facts#{type => amqqueue:get_type(Queue), arguments => maps:from_list(Arguments)}}]
    catch _:_ -> [] end
end, rabbit_amqqueue:list(@VHOST@))).
"""
_EXCHANGES: Final = """
maps:from_list(lists:map(fun(Exchange) ->
    Facts = maps:from_list(rabbit_exchange:info(Exchange, [name, type, durable, auto_delete, internal])),
    {resource, _, exchange, Name} = maps:get(name, Facts),
    {Name, maps:remove(name, Facts)}
end, rabbit_exchange:list(@VHOST@))).
"""

_LOOK_UP: Final = '{ok, Queue} = rabbit_amqqueue:lookup({resource, <<"/">>, queue, @NAME@}),'


class Console:
    """Talks to the small server that console.erl is inside a node, on 127.0.0.1, ``port``.

    Whatever asks the node raises ``OSError`` (``TimeoutError`` after 10 s) if it cannot be asked.
    """

    def __init__(self, port: int, secret: str) -> None:
        self._console_port = port
        self._console_secret = secret

    def console_script(self) -> str:
        """The Erlang expressions that the node has to run at its start."""
        text = pathlib.Path(__file__).with_name("console.erl").read_text()
        return text.replace("@PORT@", str(self._console_port)).replace("@SECRET@", self._console_secret)

    def eval(self, expression: str, seconds: float = 10.0) -> Any:
        """What an Erlang expression (it ends with a full stop) is worth inside the node, by way of JSON.

        Raises ``OSError`` (``TimeoutError`` after ``seconds``) if the node cannot be asked, ``BrokerFailed`` with
        Erlang's words if the expression fails.
        """
        text = (self._console_secret + expression).encode()
        with socket.create_connection(("127.0.0.1", self._console_port), seconds) as connection:
            connection.settimeout(seconds)
            connection.sendall(struct.pack(">I", len(text)) + text)
            with connection.makefile("rb") as stream:
                answer = stream.read()[4:].decode()
        if not answer:
            raise ConnectionError("the node closed the connection")
        if answer[0] != "+":
            raise BrokerFailed(f"{expression.strip()}: {answer[1:]}")
        return json.loads(answer[1:])

    def queues(self, vhost: str = "/") -> dict[str, dict[str, Any]]:
        """Name -> type, durable, auto_delete, exclusive, messages (also _ready, _unacknowledged), consumers, arguments.

        Counts of classic queues are of this moment, those of quorum queues and streams up to half a second old.
        """
        found: dict[str, dict[str, Any]] = self.eval(_QUEUES.replace("@VHOST@", binary(vhost)))
        for facts in found.values():
            facts["type"] = facts["type"].removeprefix("rabbit_").removesuffix("_queue")
            facts["exclusive"] = facts["exclusive"] is True  # a quorum queue says nothing at all
        return found

    def exchanges(self, vhost: str = "/") -> dict[str, dict[str, Any]]:
        """Name -> type, durable, auto_delete, internal; the default exchange is the one without a name."""
        found: dict[str, dict[str, Any]] = self.eval(_EXCHANGES.replace("@VHOST@", binary(vhost)))
        return found

    def connections(self) -> int:
        """How many AMQP connections are open."""
        found: int = self.eval("length(rabbit_networking:connections()).")
        return found

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, and return when it is; in it the node reads nothing from publishers."""
        self.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({'0.00000001' if on else WATERMARK}).")
        alarms = "length([1 || {{resource_limit, memory, _}, _} <- rabbit_alarm:get_alarms()])."
        poll(lambda: bool(self.eval(alarms)) is on, 10, f"the memory alarm {'on' if on else 'off'}")

    def add_user(self, name: str, password: str, vhost: str = "/") -> None:
        """Add a user who may do everything in ``vhost``."""
        self.eval(f"rabbit_auth_backend_internal:add_user({binary(name)}, {binary(password)}, {binary('tests')}).")
        self.set_permissions(name, ".*", ".*", ".*", vhost)

    def set_permissions(self, name: str, configure: str, write: str, read: str, vhost: str = "/") -> None:
        """Let a user do in ``vhost`` what these patterns match, and nothing else."""
        rights = ", ".join(map(binary, (name, vhost, configure, write, read, "tests")))
        self.eval(f"rabbit_auth_backend_internal:set_permissions({rights}).")

    def delete_user(self, name: str) -> None:
        """Remove a user."""
        self.eval(f"rabbit_auth_backend_internal:delete_user({binary(name)}, {binary('tests')}).")

    def limit_queue(self, name: str, length: int) -> None:
        """Have a queue of vhost /, with this name once it is there, refuse what would make it longer."""
        limits = f'[{{<<"max-length">>, {length}}}, {{<<"overflow">>, <<"reject-publish">>}}]'
        rest = f'0, <<"queues">>, {binary("tests")}'
        self.eval(f'ok = rabbit_policy:set(<<"/">>, {binary(name)}, {binary(f"^{name}$")}, {limits}, {rest}).')

    def delete_queue(self, name: str, vhost: str = "/") -> None:
        """Delete a queue, even if it has messages or consumers; raise ``BrokerFailed`` if there is none."""
        self.eval(
            f"{{ok, Queue}} = rabbit_amqqueue:lookup({{resource, {binary(vhost)}, queue, {binary(name)}}}), "
            f"{{ok, _}} = rabbit_amqqueue:delete(Queue, false, false, {binary('tests')}), ok."
        )

    def forget_queue(self, name: str, vhost: str = "/") -> None:
        """Remove a queue from what the node knows, as where it could not be formed on all nodes of a cluster.

        Nobody is told. The process of a classic queue lives on, with its consumers; that of a quorum queue ends.
        """
        self.eval(
            f"{{ok, Queue}} = rabbit_amqqueue:lookup({{resource, {binary(vhost)}, queue, {binary(name)}}}), "
            "{ok, Version} = application:get_key(rabbit, vsn), "
            'What = case Version of "3." ++ _ -> amqqueue:get_name(Queue); _ -> Queue end, '
            f"rabbit_amqqueue:internal_delete(What, {binary('tests')}), "
            "case amqqueue:get_pid(Queue) of "
            "{Name, _} -> [ra:force_delete_server(quorum_queues, {Name, Node}) || Node <- [node() | nodes()]]; "
            "_ -> ok end, ok."
        )

    def queue_leader(self, name: str) -> str:
        """The name of the node that leads a quorum queue of vhost /, as far as this node knows."""
        found: str = self.eval(f"{_LOOK_UP.replace('@NAME@', binary(name))} element(2, amqqueue:get_pid(Queue)).")
        return found

    def lose_other_members(self, name: str) -> None:
        """Take the members of a quorum queue of vhost / on all other nodes away for good, with what is in them.

        As where their disks are lost: most members are gone, the queue can have no leader, and nobody is told.
        """
        self.eval(
            f"{_LOOK_UP.replace('@NAME@', binary(name))} {{Member, _}} = amqqueue:get_pid(Queue), "
            "[ok = ra:force_delete_server(quorum_queues, {Member, Node}) || Node <- nodes()], ok."
        )


def binary(text: str) -> str:
    """``text`` as an Erlang binary, whatever is in it."""
    return "<<" + ",".join(str(byte) for byte in text.encode()) + ">>"
