from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from msgbus import (
    JsonPayloadSerializer,
    NoOpSerializer,
    SerializationError,
    Serializer,
    Target,
    get_rpc_client,
    get_rpc_server,
)
from tests.support import new_transport


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Struct(msgspec.Struct):
    name: str


class Context:
    def to_dict(self) -> dict[str, Any]:
        return {"user": "u"}


@pytest.mark.parametrize("cls", [NoOpSerializer, JsonPayloadSerializer])
def test_contexts(cls: type[Serializer]) -> None:
    """A context is a dict, None, or has a `to_dict`; it is copied, and comes back as the dict that it was."""
    serializer = cls()
    ctxt = {"user": "u"}
    assert serializer.serialize_context(None) == {}
    assert serializer.serialize_context(ctxt) == ctxt
    assert serializer.serialize_context(ctxt) is not ctxt
    assert serializer.serialize_context(Context()) == {"user": "u"}
    assert serializer.deserialize_context(ctxt) == ctxt


def test_no_op_passes_everything_on() -> None:
    """`NoOpSerializer` leaves entities alone."""
    entity = object()
    serializer = NoOpSerializer()
    assert serializer.serialize_entity({}, entity) is entity
    assert serializer.deserialize_entity({}, entity) is entity


@pytest.mark.parametrize(
    ("entity", "plain"),
    [
        (Point(1, 2), {"x": 1, "y": 2}),
        ([Struct("n")], [{"name": "n"}]),
        (
            {
                1,
            },
            [1],
        ),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        ({"a": (1, None)}, {"a": [1, None]}),
        ("text", "text"),
    ],
)
def test_json_payload_makes_plain_data(entity: Any, plain: Any) -> None:
    """`JsonPayloadSerializer` converts types that JSON lacks, and returns received values as they are."""
    serializer = JsonPayloadSerializer()
    result = serializer.serialize_entity({}, entity)
    assert msgspec.json.decode(msgspec.json.encode(result)) == plain
    assert serializer.deserialize_entity({}, plain) == plain


def test_json_payload_refuses_what_it_does_not_know() -> None:
    """What cannot be made plain is an error of msgbus, not a foreign one."""
    with pytest.raises(SerializationError, match="object"):
        JsonPayloadSerializer().serialize_entity({}, object())


def test_a_class_is_no_serializer() -> None:
    """Whoever forgets the parentheses is told so, and not each of their clients."""
    transport = new_transport()
    wrong: Any = JsonPayloadSerializer
    with pytest.raises(TypeError, match=r"JsonPayloadSerializer is a class: JsonPayloadSerializer\(\)$"):
        get_rpc_client(transport, Target(topic="t"), serializer=wrong)
    with pytest.raises(TypeError, match=r"JsonPayloadSerializer is a class: JsonPayloadSerializer\(\)$"):
        get_rpc_server(transport, Target(topic="t", server="s"), [], serializer=wrong)


def test_a_serializer_has_to_do_all_of_it() -> None:
    """The base class is abstract: a serializer that lacks a method cannot be made."""
    with pytest.raises(TypeError):
        Serializer()  # type: ignore[abstract]  # this is what must not work
