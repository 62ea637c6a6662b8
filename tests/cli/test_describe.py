"""``msgbus describe`` and ``msgbus stub``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from msgbus import Target, get_rpc_client, since
from msgbus.cli.errors import Code
from msgbus.cli.stub_types import Types
from msgbus.cli.stub_writer import write_stub
from msgbus.describing import Description, Interface, MethodInfo
from tests.cli.described import Bus, Plain, hostile
from tests.core.typed_service import Images
from tests.support import ROOT, new_transport

AT = datetime(2026, 1, 2, tzinfo=UTC)


# describe


def test_describe_shows_methods_in_a_table(bus: Bus) -> None:
    """Servers that have the same are shown together."""
    bus.serve("one", Plain())
    bus.serve("two", Plain())
    bus.serve("other", Images())
    result = bus.run("describe", "images")
    assert result.exit_code == 0, result.output
    rest, other = result.stdout.split("topic images, server other\n")
    assert rest.startswith("topic images, servers one, two\n")
    assert "images 1.2  thumbnails(image: Image, count: int) -> Iterator[Thumbnail]" in other
    assert [line.split() for line in rest.splitlines()[2:]] == [
        ["1.0", "greet(name='you')", "call", "1.0", "Greet", "somebody."],
        ["1.0", "note(text:", "str)", "->", "None", "cast", "1.0"],
    ]
    only = bus.run("describe", "images", "--server", "two").stdout
    assert only.startswith("topic images, server two\n")


def test_describe_as_json_has_all(bus: Bus) -> None:
    """A line for each server, with schemas and whole docstrings."""
    bus.serve("one", Plain())
    bus.serve("two", Images())
    one, two = map(json.loads, bus.run("describe", "images", "--json").stdout.splitlines())
    assert (one["server"], two["server"]) == ("one", "two")
    assert "backslash" in one["interfaces"][0]["methods"][0]["doc"]
    assert two["definitions"]["Image"]["required"] == ["name"]


class Grown:
    target = Target(namespace="grown", version="2.3")

    @since("2.1")
    def added(self, ctxt: object) -> None: ...

    def old(self, ctxt: object) -> None: ...


def test_describe_says_which_version_added_a_method(bus: Bus) -> None:
    """In the table and as JSON; a method that is not marked is there since the first one of its major version."""
    bus.serve("one", Grown())
    rows = [line.split() for line in bus.run("describe", "images").stdout.splitlines()[1:]]
    assert rows == [
        ["interface", "method", "kind", "since", "what", "it", "does"],
        ["grown", "2.3", "added()", "->", "None", "call", "2.1"],
        ["grown", "2.3", "old()", "->", "None", "call", "2.0"],
    ]
    (interface,) = json.loads(bus.run("describe", "images", "--json").stdout)["interfaces"]
    assert {method["name"]: method["since"] for method in interface["methods"]} == {"added": "2.1", "old": "2.0"}


def test_describe_says_why_a_server_does_not(bus: Bus) -> None:
    """Its option is off, or it is older."""
    transport = new_transport(bus.url, rpc_built_in_methods=["stats"])
    bus.serve("one", Plain(), transport=transport)
    for command in ("describe", "stub"):
        result = bus.run(command, "images")
        assert result.exit_code == Code.REMOTE, result.output
        assert "of topic 'images' cannot be described: its option rpc_built_in_methods has no describe" in result.stderr
    bus.servers.pop().wait(20)
    transport.cleanup()


def test_describe_shows_the_others_if_one_server_does_not_say(bus: Bus) -> None:
    """The error, and its exit code, come after what the others have."""
    transport = new_transport(bus.url, rpc_built_in_methods=["stats"])
    bus.serve("one", Plain())
    bus.serve("two", Plain(), transport=transport)
    for options in ([], ["--json"]):
        result = bus.run("describe", "images", *options)
        assert result.exit_code == Code.REMOTE, result.output
        assert "greet" in result.stdout
        line = result.stderr.splitlines()[-1]
        assert "the server 'two' of topic 'images' cannot be described" in line
        if options:
            assert json.loads(line)["error"] == "RPCDispatcherError"
        else:
            assert line.startswith("msgbus describe: RPCDispatcherError: ")
    bus.servers.pop().wait(20)
    transport.cleanup()


class NoDescription:
    """Answers to describe by something else."""

    target = Target(namespace="msgbus")

    def describe(self, ctxt: object) -> dict[str, Any]:
        return {"topic": 5}


def test_an_answer_that_is_no_description_is_an_error(bus: Bus) -> None:
    """It says whose answer it is."""
    transport = new_transport(bus.url, rpc_built_in_methods=[])
    bus.serve("one", NoDescription(), transport=transport)
    for command in ("describe", "stub"):
        result = bus.run(command, "images", "--server", "one")
        assert result.exit_code == Code.USAGE, result.output
        assert "the description of the server 'one' of topic 'images' cannot be read: Expected `str" in result.stderr
    bus.servers.pop().wait(20)
    transport.cleanup()


def test_describe_without_any_server_is_exit_code_3(bus: Bus) -> None:
    """The same as for a call."""
    for command in ("describe", "stub"):
        assert bus.run(command, "images", "--timeout", "0.5").exit_code == Code.NO_SERVER


def test_describe_escapes_what_servers_say(bus: Bus) -> None:
    """A docstring may hold what a terminal would obey."""

    class Hostile:
        def greet(self, ctxt: object) -> None: ...

    Hostile.greet.__doc__ = "\x1b[31mred"
    bus.serve("one", Hostile())
    assert "\x1b" not in bus.run("describe", "images").stdout


# stub


def module_of(text: str, name: str = "images_api") -> types.ModuleType:
    """Run a module that was written."""
    spec = importlib.util.spec_from_loader(name, None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)  # noqa: S102 - that is what is tested
    return module


def test_a_stub_works_against_the_server_that_it_came_from(bus: Bus) -> None:
    """Its classes have the types of the arguments and results."""
    bus.serve("one", Images(), Plain())
    result = bus.run("stub", "images")
    assert result.exit_code == 0, result.output
    api: Any = module_of(result.stdout)
    client = get_rpc_client(bus.transport, Target(topic="images"), timeout=20)
    images = client.proxy(api.ImagesApi)
    image = api.Image(name="n", width=3)
    made = images.resize(image=image, size=(1, 2), at=AT)
    assert made == api.Thumbnail(image=image, size=(1, 2), at=AT)
    assert images.area(shape=api.Square(side=2.0)) == 4
    assert [item.size for item in images.thumbnails(image=image, count=2)] == [(0, 0), (1, 1)]
    assert images.inherited(colour="red") == "RED"
    assert images.names(users=[api.User(name="n", since=AT)]) == [api.User(name="n", since=AT)]
    assert images.raw() == b"\xff\x00"
    kinds = images.scalars(id=UUID(int=5), price="1.5", colour="red", raw=b"", count=None)
    assert kinds == ["UUID", "Decimal", "Colour", "bytes", "NoneType"]
    assert images.numbers(first=1, more=2) == [1, 2]
    plain = client.proxy(api.PlainApi)
    assert plain.greet() == "Hello, you"
    assert plain.note(text="x") is None
    assert "backslash" in api.PlainApi.greet.__doc__


def test_a_stub_says_which_version_added_a_method(bus: Bus) -> None:
    """In a comment before the method, unless it was there from the beginning."""
    bus.serve("one", Grown())
    text = bus.run("stub", "images").stdout
    assert "    # since version '2.1'\n    def added(self) -> None: ...\n\n    def old(" in text
    assert text.count("# since") == 1
    module_of(text)


@pytest.mark.parametrize("version", ["2.1\nimport os", "x", "", "2", "2.0.0", None])
def test_a_stub_says_nothing_of_what_is_no_later_version(version: str | None) -> None:
    """A server may say anything."""
    interface = Interface("Grown", methods=[MethodInfo("added", since=version)])
    assert "since" not in write_stub(Description("t", "s", interfaces=[interface]), "t", asynchronous=False)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stub_is_python_whatever_the_server_says(asynchronous: bool) -> None:
    """Text of a server is only ever a literal or a comment, and what has no name in Python is left out."""
    text = write_stub(hostile(), "images", asynchronous=asynchronous)
    module = module_of(text)
    assert "# left out, since Python has no method of that name here: 'class'" in text
    assert "# an argument is left out, since Python has none of that name: 'a-b'" in text
    client = get_rpc_client(new_transport(), Target(topic="t"))
    apis = [name for name in vars(module) if name.endswith("Api")]
    assert len(apis) == 3
    assert module.__doc__ == "What topic images has, as a server of it says. Written by msgbus stub."
    if not asynchronous:
        with pytest.raises(TypeError, match="has no methods"):
            client.proxy(vars(module)[apis[1]])
    client.transport.cleanup()


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 9}, "Annotated[int, Meta(ge=1, lt=9)]"),
        ({"type": "number", "multipleOf": 0.5}, "Annotated[float, Meta(multiple_of=0.5)]"),
        ({"type": "string", "minLength": 2, "pattern": "^a"}, "Annotated[str, Meta(min_length=2)]"),
        ({"type": "string", "pattern": "(a+)+$"}, "str"),
        ({"type": "integer", "minimum": 10**400}, "int"),
        ({"type": "integer", "minimum": 10**30}, "int"),
        ({"type": "integer", "minimum": 1.5}, "int"),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": 2}, "int"),
        ({"type": "number", "multipleOf": -1}, "float"),
        ({"type": "number", "minimum": float("inf")}, "float"),
        ({"type": "string", "minLength": -1}, "str"),
        ({"type": "array", "minItems": 1.5}, "list[Any]"),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"type": "string", "format": "duration"}, "timedelta"),
        ({"type": "string", "format": "e-mail"}, "str"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, "Annotated[list[None], Meta(min_length=1)]"),
        ({"type": "array", "prefixItems": [{}, {"type": "null"}], "minItems": 2}, "tuple[Any, None]"),
        ({"type": "array", "prefixItems": [{}, {"type": "null"}], "minItems": 1}, "list[Any]"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "dict[str, bool]"),
        ({"type": ["integer", "null"]}, "int | None"),
        ({"type": []}, "Any"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]}, "int | float | None"),
        ({"anyOf": [{"type": "string"}, {"type": "string", "format": "date"}]}, "Any"),
        ({"enum": ["a", 1, None]}, 'Literal["a", 1, None]'),
        ({"enum": [1.5]}, "Any"),
        ({"enum": [10**30]}, "Any"),
        ({"enum": ["\ud800"]}, "Any"),
        ({"const": "a"}, 'Literal["a"]'),
        ({"allOf": [{"type": "string"}]}, "str"),
        ({}, "Any"),
        (True, "Any"),
        ({"$ref": "#/$defs/Nowhere"}, "Any"),
    ],
)
def test_types_of_schemas(schema: Any, kind: str) -> None:
    """What a schema says, as far as msgspec can check it; what it could not is Any."""
    types_ = Types({}, [])
    assert types_.of(schema) == kind
    made = {line.split()[1] for line in types_.imports() if line}
    assert made <= {"collections.abc", "datetime", "decimal", "typing", "uuid", "msgspec"}
    msgspec.convert({}, msgspec.defstruct("S", [("x", eval(kind, vars(module_of("\n".join(types_.imports())))), None)]))  # noqa: S307


def used(description: Description) -> types.ModuleType:
    """Make the proxy of each class that is written for a description, so that all of its types are used."""
    module = module_of(write_stub(description, "images", asynchronous=False))
    client = get_rpc_client(new_transport(), Target(topic="t"))
    for name, made in [*vars(module).items()]:
        if name.endswith("Api"):
            client.proxy(made)
        elif isinstance(made, type) and issubclass(made, msgspec.Struct) and made is not msgspec.Struct:
            msgspec.json.Decoder(made)
    client.transport.cleanup()
    return module


def described(result: Any, definitions: dict[str, Any] | None = None, doc: str = "") -> Description:
    """A description with one method, of that result."""
    method = MethodInfo("method", doc=doc, arguments={"properties": {"x": result}}, result=result)
    return Description("t", "s", "h", [Interface("E", doc=doc, methods=[method])], definitions or {})


def nested(levels: int, inside: Any) -> dict[str, Any]:
    """The schema of lists within each other."""
    for _ in range(levels):
        inside = {"type": "array", "items": inside}
    return inside  # type: ignore[no-any-return]  # there is one level at least


def tagged(*values: Any, field: str = "kind") -> tuple[Any, dict[str, Any]]:
    """The schema of a union of classes that a field tells apart, and the definitions of these."""
    names = [f"C{number}" for number in range(len(values))]
    definitions = {
        name: {"type": "object", "properties": {field: {"enum": [value]}, "x": {}}}
        for name, value in zip(names, values, strict=True)
    }
    told = {"propertyName": field, "mapping": {name: f"#/$defs/{name}" for name in names}}
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names], "discriminator": told}, definitions


@pytest.mark.parametrize(
    ("result", "definitions"),
    [
        tagged("a", "b"),
        tagged("a", "a"),
        tagged("a", 1),
        tagged(10**30, 1),
        tagged("\ud800", "b"),
        ({"$ref": "#/$defs/A"}, {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}}),
        ({"$ref": "#/$defs/A"}, {"A": {"enum": ["a"], "anyOf": [{"$ref": "#/$defs/A"}]}}),
        ({"$ref": "#/$defs/A"}, {"A": {"enum": ["a"], "$ref": "#/$defs/B"}, "B": tagged("a")[1]["C0"]}),
        ({"$ref": "#/$defs/A"}, {"A": {"enum": 5}}),
        ({"$ref": "#/$defs/A"}, {"A": {"type": "object", "properties": {5: {}, "x": {}}}}),
        (nested(150, {"type": "integer"}), {}),
        (nested(900, {"type": "integer"}), {}),
        ({"$ref": "#/$defs/A"}, {"A": {"type": "object", "properties": {"x": nested(900, {})}}}),
    ],
)
def test_a_stub_can_be_used_whatever_the_server_says(result: Any, definitions: dict[str, Any]) -> None:
    """Schemas that make no sense are Any, as far as they do not, and keep no class from being used."""
    used(described(result, definitions))


@pytest.mark.parametrize(("namespace", "version"), [(None, "1" * 65), ("shop", "one\n"), ("x" * 256, "1.0")])
def test_a_stub_has_no_interface_that_nobody_can_ask_for(namespace: str | None, version: str) -> None:
    """A comment says which one it was."""
    interface = Interface("E", namespace, version=version)
    text = write_stub(Description("t", "s", "h", [interface]), "images", asynchronous=False)
    assert "# an interface is left out, since nobody can ask for it: namespace '" in text
    assert "EApi" not in vars(module_of(text))


def test_unions_are_told_apart_if_their_classes_can_be() -> None:
    """A field of each class has another value."""
    result, definitions = tagged("a", "b")
    module = used(described(result, definitions))
    assert module.EApi.method.__annotations__["return"] == "C0 | C1"


def test_docstrings_with_half_characters() -> None:
    """Python would refuse them in a class."""
    assert used(described({}, doc="half \ud800")).EApi.__doc__ == "half ?"


def test_a_short_description_does_not_become_a_long_stub() -> None:
    """Definitions may refer to each other again and again, and have the same names."""
    last = {"D60": {"type": "integer"}}
    many = {f"D{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/D{n + 1}"}] * 2} for n in range(60)}
    text = write_stub(described({"$ref": "#/$defs/D0"}, {**many, **last}), "images", asynchronous=False)
    assert len(text) < 5000
    names = {f"a{number}.Same": {"type": "object", "properties": {"x": {}}} for number in range(20_000)}
    assert "class Same20000(" in write_stub(described({}, names), "images", asynchronous=False)


def test_mypy_accepts_stubs(tmp_path: Path) -> None:
    """Also of what a hostile server says, with the strictest settings."""
    pytest.importorskip("mypy")
    description = msgspec.convert(msgspec.to_builtins(hostile()), Description)
    (tmp_path / "hostile_api.py").write_text(write_stub(description, "images", asynchronous=False))
    (tmp_path / "async_api.py").write_text(write_stub(description, "images", asynchronous=True))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    run = subprocess.run(
        [*command, "--follow-imports=silent", *map(str, tmp_path.glob("*.py"))],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.stdout == "Success: no issues found in 2 source files\n"
