"""An AsyncAPI document of a topic, from what a server of it says of itself.

Each method is an operation that receives its request on the channel of the topic; unless it is a cast, the answer goes
to the inbox of the client. The arguments are the payload of the request. What travels beside them, the method's name
for one, are its headers. What AsyncAPI has no word for is in ``x-msgbus``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from msgbus.cli.asyncapi_schemas import Converter, Names
from msgbus.describing import Description, Interface, MethodInfo
from msgbus.drivers.base import Address
from msgbus.versions import is_version, parse_version

VERSION = "3.0.0"
EXTENSION = "x-msgbus"
AT_ONE, AT_ALL, FAILURE = "at-one-server", "at-all-servers", "failure"
"""The operations of the channels for one server and for all, and the message that says that a method has failed."""
_RESERVED = (AT_ONE, AT_ALL, FAILURE)
_CHANNELS = {
    "topic": "A request that is sent here goes to one of the servers. It travels as one object: the headers are its "
    "keys, and the payload is in the key args.",
    "server": "A request that is sent here goes to the server of that name.",
    "fanout": "A request that is sent here goes to all servers: as a cast, or as a gather, which each of them answers.",
    "inbox": "Answers to one client, which names its inbox in the header _reply_q of a request. An answer travels as "
    "one object: the headers are its keys, and the payload is in the key result, or, if the method has failed, in the "
    "key failure; items of a stream are in the list items of the key _msgbus.",
}
_SERVER = "{server}"
_TEXT_OR_NULL = {"type": ["string", "null"]}


def asyncapi_document(
    description: Description, topic: Address, servers: dict[str, Any], content_type: str
) -> dict[str, Any]:
    """Return the document.

    Args:
        description: what a server says of itself. It is foreign: nothing in it is relied upon.
        topic: the address of the topic.
        servers: of `servers_of`.
        content_type: of requests, and so of their answers.
    """
    schemas = Converter(description.definitions)
    parts = _Parts()
    for interface in description.interfaces:
        parts.add(interface, schemas)
    return {
        "asyncapi": VERSION,
        "info": _info(description, topic.topic, parts.tags),
        "defaultContentType": content_type,
        **({"servers": servers} if servers else {}),
        "channels": _channels(topic, parts),
        "operations": {**parts.operations, **_of_many_methods()},
        "components": {
            "messages": {**parts.requests, **parts.answers, FAILURE: _failure()},
            "schemas": schemas.converted(),
            "correlationIds": {"call": {"location": "$message.header#/_msg_id"}},
            "replyAddresses": {"inbox": {"location": "$message.header#/_reply_q"}},
        },
    }


def _info(description: Description, topic: str, tags: list[dict[str, Any]]) -> dict[str, Any]:
    """The section info. Its version is the highest one of an interface."""
    versions = [interface.version for interface in description.interfaces if is_version(interface.version)]
    info: dict[str, Any] = {"title": topic, "version": max(versions, key=parse_version, default="1.0")}
    if tags:
        info["tags"] = tags
    if description.left_out:
        info[EXTENSION] = {"left_out": description.left_out}
    return info


class _Parts:
    """What is made of the methods.

    Attributes:
        tags: one for each interface.
        operations: one for each method.
        requests, answers: messages by name.
        for_all: the names of requests that may be sent to all servers: not those for streams, which one server sends.
    """

    def __init__(self) -> None:
        self.tags: list[dict[str, Any]] = []
        self.operations: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.for_all: list[str] = []
        self._tag_names = Names()
        self._names = Names(_RESERVED)

    def add(self, interface: Interface, schemas: Converter) -> None:
        """Add the methods of an interface."""
        tag = {"name": self._tag_names.new(interface.endpoint)}
        self.tags.append({**tag, **({"description": interface.doc} if interface.doc else {})})
        for method in interface.methods:
            name = self._names.new(".".join(filter(None, [interface.namespace, method.name])))
            self.requests[name] = _request(interface, method, schemas)
            if not method.stream:
                self.for_all.append(name)
            answer = None
            if method.kind != "cast":
                answer = self._names.new(f"{name}.{'item' if method.stream else 'result'}")
                self.answers[answer] = _answer(method, schemas)
            self.operations[name] = {**_operation(interface, method, name, answer), "tags": [tag]}


def _request(interface: Interface, method: MethodInfo, schemas: Converter) -> dict[str, Any]:
    """The message that carries a method's arguments."""
    namespaces = [interface.namespace, *interface.legacy_namespaces]
    required = ["method"] if None in namespaces else ["method", "namespace"]
    return {
        "name": method.name,
        "summary": f"The arguments of {method.name}.",
        "headers": {
            "type": "object",
            "properties": {
                "method": {"const": method.name},
                "namespace": {"enum": list(dict.fromkeys(namespaces))},
                "version": _TEXT_OR_NULL,
                "_msg_id": _TEXT_OR_NULL,
                "_reply_q": _TEXT_OR_NULL,
            },
            "required": required,
        },
        "payload": schemas.of(method.arguments),
        "correlationId": _reference("components", "correlationIds", "call"),
    }


def _answer(method: MethodInfo, schemas: Converter) -> dict[str, Any]:
    """The message that carries a method's result, or an item of its stream."""
    return {
        "name": method.name,
        "summary": f"An item of the stream of {method.name}." if method.stream else f"The result of {method.name}.",
        "headers": _headers_of_answers(),
        "payload": schemas.of(method.result),
        "correlationId": _reference("components", "correlationIds", "call"),
    }


def _failure() -> dict[str, Any]:
    """The message that says that a method has failed."""
    text = "JSON text of an object with the exception's class, module, message, arguments and traceback."
    return {
        "name": FAILURE,
        "summary": "The exception of a method.",
        "headers": _headers_of_answers(),
        "payload": {"type": "string", "contentMediaType": "application/json", "description": text},
        "correlationId": _reference("components", "correlationIds", "call"),
    }


def _headers_of_answers() -> dict[str, Any]:
    return {"type": "object", "properties": {"_msg_id": {"type": "string"}}, "required": ["_msg_id"]}


def _operation(interface: Interface, method: MethodInfo, request: str, answer: str | None) -> dict[str, Any]:
    """A method, on the channel of the topic."""
    about = {"kind": method.kind, "method": method.name, "namespace": interface.namespace}
    about |= {"version": interface.version, "since": method.since, "signature": method.signature}
    operation: dict[str, Any] = {
        "action": "receive",
        "channel": _reference("channels", "topic"),
        "messages": [_reference("channels", "topic", "messages", request)],
        EXTENSION: {**about, "validated": method.validated},
    }
    summary, more, _ = method.doc.partition("\n")
    if summary:
        operation["summary"] = summary
    if more:
        operation["description"] = method.doc
    if answer is not None:
        operation["reply"] = _reply([answer, FAILURE])
    return operation


def _of_many_methods() -> dict[str, Any]:
    """The operations of the channels for one server, and for all. All methods share these."""
    return {
        AT_ONE: {
            "action": "receive",
            "channel": _reference("channels", "server"),
            "summary": "Any method, on the server of that name.",
            "reply": _reply(None),
        },
        AT_ALL: {
            "action": "receive",
            "channel": _reference("channels", "fanout"),
            "summary": "Any method but a stream, on all servers.",
            "reply": _reply(None),
        },
    }


def _reply(messages: Iterable[str] | None) -> dict[str, Any]:
    """Where an answer goes, and which it may be; None: any."""
    reply: dict[str, Any] = {
        "address": _reference("components", "replyAddresses", "inbox"),
        "channel": _reference("channels", "inbox"),
    }
    if messages is not None:
        reply["messages"] = [_reference("channels", "inbox", "messages", name) for name in messages]
    return reply


def _channels(topic: Address, parts: _Parts) -> dict[str, Any]:
    """The addresses of a topic, and of the clients' inboxes."""
    address = f"{quote(topic.exchange, safe='')}/{quote(topic.topic, safe='')}"
    of_topic = {"exchange": topic.exchange, "topic": topic.topic}
    return {
        "topic": _channel("topic", address, parts.requests, of_topic),
        "server": {
            **_channel("server", f"{address}/{_SERVER}", parts.requests, of_topic),
            "parameters": {"server": {"description": "The name of a server: msgbus ping lists them."}},
        },
        "fanout": _channel("fanout", f"{address}/!fanout", parts.for_all, of_topic),
        "inbox": _channel("inbox", None, [*parts.answers, FAILURE], {}),
    }


def _channel(kind: str, address: str | None, messages: Iterable[str], more: dict[str, str]) -> dict[str, Any]:
    return {
        "address": address,
        "description": _CHANNELS[kind],
        "messages": {name: _reference("components", "messages", name) for name in messages},
        EXTENSION: {"kind": kind, **more},
    }


def _reference(*path: str) -> dict[str, str]:
    return {"$ref": f"#/{'/'.join(path)}"}
