"""What the tests of ``msgbus describe`` and ``msgbus stub`` share."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

import msgbus
from msgbus import Target, get_rpc_server
from msgbus.cli.app import cli
from msgbus.describing import Description, Interface, MethodInfo
from tests.support import new_transport, new_url


class Plain:
    """Not annotated."""

    def greet(self, ctxt, name="you"):  # type: ignore[no-untyped-def]  # that is what it is about
        r"""Greet somebody.

        With a "quotation", and a backslash: \n.
        """
        return f"Hello, {name}"

    @msgbus.one_way
    def note(self, ctxt: object, text: str) -> None: ...


class Bus:
    """A bus in memory with servers of the topic images."""

    def __init__(self) -> None:
        self.url = new_url()
        self.transport = new_transport(self.url)
        self.servers: list[msgbus.RPCServer] = []

    def serve(self, name: str, *endpoints: Any, transport: msgbus.Transport | None = None) -> None:
        target = Target(topic="images", server=name)
        server = get_rpc_server(transport or self.transport, target, endpoints, validate=True)
        server.start()
        self.servers.append(server)

    def run(self, *args: str) -> Result:
        return CliRunner().invoke(cli, [*args, "--url", self.url])


def hostile() -> Description:
    """What a server might say in order to have its text run, or to write a module that is no Python."""
    evil = '"""\nraise SystemExit("run")\n\'\'\'\n'
    names = ["class", "a-b", "self", "_x", "ok", "__x", evil, "int", "Any", "list", "é"]
    properties = {name: {"type": "integer", "default": evil, "minimum": evil} for name in names}
    fields = {
        **properties,
        "many": {"type": "array", "items": {"$ref": "#/$defs/Loop"}, "default": []},
        "when": {"type": "string", "format": "date-time", "default": evil},
        "datetime": {"type": "string", "format": "date-time"},
        "word": {"enum": [evil, "b"], "default": evil},
        "text": {"type": "string", "pattern": "(", "default": evil},
        "mixed": {"anyOf": [{"type": "string"}, {"type": "string", "format": "date"}]},
        "either": {"anyOf": [{"$ref": "#/$defs/Circle"}, {"$ref": f"#/$defs/{evil}"}]},
    }
    tagged = {"propertyName": evil, "mapping": {evil: "#/$defs/Circle"}}
    definitions: dict[str, Any] = {
        evil: {"type": "object", "properties": fields, "required": ["ok"], "description": evil},
        "Circle": {"type": "object", "properties": {evil: {"enum": [evil]}}, "discriminator": tagged},
        "Any": {"type": "object", "properties": {"x": {}}},
        "Colour": {"enum": ["a", evil]},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Odd": {"type": "object", "properties": {"x": {"type": 5}, "y": {"anyOf": 5}, "z": 5}},
        "None": 5,
    }
    arguments = {"type": "object", "properties": {**properties, "odd": {"$ref": "#/$defs/Odd"}}, "required": ["ok"]}
    refer = [{"$ref": f"#/$defs/{name}"} for name in definitions]
    methods = [
        MethodInfo(
            name,
            evil,
            evil,
            stream=name == "list",
            one_way=True,
            since=evil,
            arguments=arguments,
            result=refer[number % 7],
        )
        for number, name in enumerate([*names, "target", "Iterator", "str", "datetime", "others"])
    ]
    odd = MethodInfo(
        "odd", arguments={"properties": 5, "required": 5, "additionalProperties": 5}, result={"type": "null"}
    )
    interfaces = [Interface(evil, evil, [], "1.0", evil, [*methods, odd]), Interface("class"), Interface("Any")]
    return Description(evil, evil, evil, interfaces, definitions, [evil])
