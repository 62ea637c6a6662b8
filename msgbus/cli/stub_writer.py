"""Writes a Python module for typed clients, from what a server says of itself."""

from __future__ import annotations

from collections.abc import Iterator

from msgbus.cli.stub_types import INDENT, Types, docstring, is_identifier, literal, properties_of, shown
from msgbus.describing import Description, Interface, MethodInfo
from msgbus.exceptions import InvalidTarget
from msgbus.target import Target
from msgbus.versions import is_version, parse_version, version_is_compatible

MAX_LINE = 116


def write_stub(description: Description, topic: str, *, asynchronous: bool) -> str:
    """Return the text of a module with a class for each interface.

    All that comes from the server is foreign: see `msgbus.cli.stub_types`.
    """
    methods = [method for interface in description.interfaces for method in interface.methods]
    types = Types(description.definitions, (method.name for method in methods))
    types.note_tags([part for method in methods for part in (method.arguments, method.result)])
    apis = [
        line for interface in description.interfaces for line in ["", "", *_class_of(interface, types, asynchronous)]
    ]
    definitions = [*types.write_definitions()]
    head = [docstring(f"What topic {topic} has, as a server of it says. Written by msgbus stub.", ""), ""]
    if description.left_out:
        left_out = shown(", ".join(description.left_out))
        head = [*head, f"# It is too large for one message, so that these were left out: {left_out}", ""]
    return "\n".join([*head, "from __future__ import annotations", "", *types.imports(), *definitions, *apis, ""])


def _class_of(interface: Interface, types: Types, asynchronous: bool) -> Iterator[str]:
    """The class of an interface."""
    if not _is_target(interface):
        what = f"{shown(interface.namespace or '')}, version {shown(interface.version)}"
        yield f"# an interface is left out, since nobody can ask for it: namespace {what}"
        return
    yield f"class {types.new_name(f'{interface.endpoint}Api')}({types.use('Protocol')}):"
    if interface.doc:
        yield docstring(interface.doc, INDENT)
        yield ""
    arguments = f"version={literal(interface.version)}"
    if interface.namespace is not None:
        arguments = f"namespace={literal(interface.namespace)}, {arguments}"
    target = types.use("Target")
    yield f"{INDENT}target: {types.use('ClassVar')}[{target}] = {target}({arguments})"
    for method in interface.methods:
        yield ""
        yield from _method(method, types, asynchronous)


def _is_target(interface: Interface) -> bool:
    try:
        Target(namespace=interface.namespace, version=interface.version)
        version_is_compatible(interface.version, interface.version)
    except (InvalidTarget, ValueError):
        return False
    return True


def _method(method: MethodInfo, types: Types, asynchronous: bool) -> Iterator[str]:
    if not is_identifier(method.name) or method.name.startswith("_") or method.name == "target":
        yield f"{INDENT}# left out, since Python has no method of that name here: {shown(method.name)}"
        return
    for name in properties_of(method.arguments):
        if not _is_argument(name):
            yield f"{INDENT}# an argument is left out, since Python has none of that name: {shown(name)}"
    if method.since is not None and is_version(method.since) and parse_version(method.since)[1:] != (0, 0):
        yield f"{INDENT}# since version {shown(method.since)}"
    arguments = ["self", *_arguments(method, types)]
    result = types.use("Any") if method.result is None else types.of(method.result)
    if method.one_way and result == "None" and not method.stream:
        yield f"{INDENT}@{types.use('one_way')}"
    if method.stream:
        result = f"{types.use('AsyncIterator' if asynchronous else 'Iterator')}[{result}]"
    start = f"{INDENT}{'async def' if asynchronous and not method.stream else 'def'} {method.name}("
    line = f"{start}{', '.join(arguments)}) -> {result}:"
    if len(line) > MAX_LINE:
        line = "\n".join([start, *(f"{INDENT * 2}{argument}," for argument in arguments), f"{INDENT}) -> {result}:"])
    if not method.doc:
        yield f"{line} ..."
        return
    yield line
    yield docstring(method.doc, INDENT * 2)
    yield f"{INDENT * 2}..."


def _is_argument(name: str) -> bool:
    return is_identifier(name) and name != "self"


def _arguments(method: MethodInfo, types: Types) -> Iterator[str]:
    """The arguments, which are passed by name."""
    required = method.arguments.get("required")
    known = {name: schema for name, schema in properties_of(method.arguments).items() if _is_argument(name)}
    if known:
        yield "*"
    for name, schema in known.items():
        default = "" if isinstance(required, list) and name in required else " = ..."
        yield f"{name}: {types.of(schema)}{default}"
    others = method.arguments.get("additionalProperties", {})
    if others is not False:
        name = next(name for name in ("others", "more", "further_arguments", "others_") if name not in known)
        yield f"**{name}: {types.of(others)}"
