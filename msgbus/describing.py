"""What a server says of itself: its interfaces, and their methods with signatures, docstrings and JSON Schemas."""

from __future__ import annotations

import inspect
import socket
import types
import typing
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from msgbus.dispatcher import expose
from msgbus.message import PING_NAMESPACE
from msgbus.schemas import Schemas
from msgbus.signatures import EMPTY, Signature, function_of, is_generator, read_signature
from msgbus.target import Target
from msgbus.typed_client import is_one_way
from msgbus.versions import first_version, since_of

MAX_METHODS = 500
"""The most methods that a server describes."""
MAX_DOC = 2000
"""The most characters of a docstring."""
MAX_SIGNATURE = 1000
"""The most characters of a signature."""
MAX_BYTES = 250_000
"""About the most bytes of a description: message systems have limits."""
_MAX_DEFAULT = 60
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class MethodInfo(msgspec.Struct):
    """A method.

    Attributes:
        name: its name.
        signature: as it is written in Python, without the context.
        doc: its docstring.
        stream: it is a generator, for `multicall`.
        one_way: it is marked with `one_way`.
        validated: its arguments are checked.
        since: the version of the interface that added it; None if the server does not say.
        arguments: a JSON Schema of an object with the arguments.
        result: a JSON Schema of its result, or of each item; None if nothing is known.
    """

    name: str
    signature: str = "(...)"
    doc: str = ""
    stream: bool = False
    one_way: bool = False
    validated: bool = False
    since: str | None = None
    arguments: dict[str, Any] = {}
    result: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """How it is called: ``"call"``, ``"stream"`` (by multicall) or ``"cast"``."""
        return "stream" if self.stream else "cast" if self.one_way else "call"


class Interface(msgspec.Struct):
    """An endpoint.

    Attributes:
        endpoint: the name of its class.
        namespace: that of its target.
        legacy_namespaces: likewise.
        version: likewise.
        doc: the docstring of its class.
        methods: those that may be called.
    """

    endpoint: str
    namespace: str | None = None
    legacy_namespaces: list[str | None] = []
    version: str = "1.0"
    doc: str = ""
    methods: list[MethodInfo] = []


class Description(msgspec.Struct):
    """What a server answers to ``describe``.

    Attributes:
        topic, server, host: as for a ping.
        interfaces: its endpoints, without what msgbus itself adds.
        definitions: JSON Schemas that the others refer to, by name.
        left_out: what would have been too large: ``"docstrings"``, ``"schemas"``, ``"methods"``.
    """

    topic: str | None
    server: str | None
    host: str = ""
    interfaces: list[Interface] = []
    definitions: dict[str, Any] = {}
    left_out: list[str] = []


class Methods(Protocol):
    """What knows the methods: a dispatcher."""

    def public_methods(self) -> Iterator[tuple[object, Target, str, Any, bool]]:
        """The endpoint, its target, the method's name, the method, and whether it is validated."""


class Describe:
    """The endpoint that answers ``describe``. The answer is made when it is first asked for."""

    target = Target(namespace=PING_NAMESPACE)

    def __init__(self, target: Target, dispatcher: Methods) -> None:
        self._described = target
        self._dispatcher = dispatcher
        self._made: Any = None

    @expose
    def describe(self, _ctxt: object) -> Any:
        """Say which interfaces and methods there are."""
        if self._made is None:
            described = Description(self._described.topic, self._described.server, socket.gethostname())
            self._made = msgspec.to_builtins(_bounded(_filled(described, self._dispatcher)))
        return self._made


def _filled(description: Description, dispatcher: Methods) -> Description:
    schemas = Schemas()
    description.definitions = schemas.definitions
    interfaces: dict[int, Interface] = {}
    for number, (endpoint, target, name, method, validated) in enumerate(dispatcher.public_methods()):
        if number == MAX_METHODS:
            description.left_out.append("methods")
            break
        if id(endpoint) not in interfaces:
            interfaces[id(endpoint)] = _interface_of(endpoint, target)
        try:
            info = _method_info(endpoint, name, method, validated, schemas)
        except Exception:  # Its annotations and its docstring may be anything.
            info = MethodInfo(name, validated=validated)
        info.since = since_of(method) or first_version(target.version or "1.0")
        interfaces[id(endpoint)].methods.append(info)
    description.interfaces = list(interfaces.values())
    return description


def _interface_of(endpoint: object, target: Target) -> Interface:
    named: Any = endpoint if isinstance(endpoint, type | types.ModuleType) else type(endpoint)
    return Interface(
        named.__qualname__ if isinstance(named, type) else named.__name__,
        target.namespace,
        list(target.legacy_namespaces or ()),
        target.version or "1.0",
        _doc_of(named),
    )


def _doc_of(thing: Any) -> str:
    doc = vars(thing).get("__doc__") if isinstance(thing, type) else getattr(thing, "__doc__", None)
    text = inspect.cleandoc(doc) if isinstance(doc, str) else ""
    text = text.encode(errors="replace").decode()  # It may hold half a character, which cannot be sent.
    return text if len(text) <= MAX_DOC else f"{text[:MAX_DOC]}..."


def _method_info(endpoint: object, name: str, method: Any, validated: bool, schemas: Schemas) -> MethodInfo:
    function = function_of(method)
    found = MethodInfo(name, doc=_doc_of(function), validated=validated, one_way=is_one_way(function))
    found.stream = is_generator(function)
    found.signature = _signature_text(method)
    owner = endpoint if isinstance(endpoint, type) else type(endpoint)
    try:
        signature = read_signature(method, owner, name)
    except TypeError:  # An annotation cannot be resolved, which only matters to a server that validates.
        found.arguments = {"type": "object"}
        return found
    found.stream = signature.stream is not None
    found.arguments = _arguments_schema(signature, schemas)
    found.result = None if signature.result is EMPTY else schemas.of(signature.result)
    return found


class _Text:
    """What an annotation or a default is shown as."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _signature_text(method: Any) -> str:
    """The signature as text, without the context."""
    try:
        signature = inspect.signature(method)
    except (ValueError, TypeError, NameError):
        return "(...)"
    parameters = [
        parameter.replace(annotation=_annotation_text(parameter.annotation), default=_default_text(parameter.default))
        for parameter in signature.parameters.values()
    ]
    if parameters and parameters[0].kind in _BY_POSITION:
        del parameters[0]
    shown = signature.replace(parameters=parameters, return_annotation=_annotation_text(signature.return_annotation))
    text = str(shown)
    return text if len(text) <= MAX_SIGNATURE else f"{text[:MAX_SIGNATURE]}..."


def _annotation_text(annotation: Any) -> Any:
    return EMPTY if annotation is EMPTY else _Text(_type_text(annotation))


def _type_text(kind: Any) -> str:
    """A type as it is usually written, without the modules of classes, and without bounds: the schemas have these."""
    arguments = typing.get_args(kind)
    if isinstance(kind, str):
        return kind
    if kind is None or kind is type(None):
        return "None"
    if kind is ...:
        return "..."
    if hasattr(kind, "__metadata__"):  # Annotated
        return _type_text(arguments[0])
    if isinstance(kind, list):  # the arguments of a Callable
        return f"[{', '.join(map(_type_text, kind))}]"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(map(_type_text, arguments))
    if not arguments:
        return kind.__qualname__ if isinstance(kind, type) else repr(kind).rpartition(".")[2]
    name = getattr(kind, "__name__", None) or _type_text(typing.get_origin(kind))
    inside = map(repr if typing.get_origin(kind) is typing.Literal else _type_text, arguments)
    return f"{name}[{', '.join(inside)}]"


def _default_text(default: Any) -> Any:
    """A default value; only short plain ones are shown, since others may be anything."""
    if default is EMPTY:
        return EMPTY
    shown = "..."
    if _is_shown(default) or (type(default) is tuple and len(default) <= _MAX_DEFAULT and all(map(_is_shown, default))):
        shown = repr(default)
    return _Text(shown if len(shown) <= _MAX_DEFAULT else "...")


def _is_shown(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 64
    return value is None or type(value) in (bool, float) or (type(value) is str and len(value) <= _MAX_DEFAULT)


def _arguments_schema(signature: Signature, schemas: Schemas) -> dict[str, Any]:
    properties = {argument.name: schemas.of(argument.kind) for argument in signature.arguments.values()}
    required = [argument.name for argument in signature.arguments.values() if argument.default is EMPTY]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    schema["additionalProperties"] = False if signature.others is None else schemas.of(signature.others)
    return schema


def _bounded(description: Description) -> Description:
    """Leave out what is too much for one message."""
    methods = [method for interface in description.interfaces for method in interface.methods]

    def is_small() -> bool:
        return len(msgspec.json.encode(description)) <= MAX_BYTES

    if not is_small():
        description.left_out.append("schemas")
        description.definitions = {}
        for method in methods:
            method.arguments, method.result = {}, None
    if not is_small():
        description.left_out.append("docstrings")
        for interface in description.interfaces:
            interface.doc = ""
        for method in methods:
            method.doc = ""
    while not is_small():
        if "methods" not in description.left_out:
            description.left_out.append("methods")
        for interface in description.interfaces:
            del interface.methods[len(interface.methods) // 2 :]
        description.interfaces = [interface for interface in description.interfaces if interface.methods]
    return description
