"""Serializer: a service's hook that turns its own entities and contexts into plain data, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from msgbus.awaitables import refuse_async
from msgbus.exceptions import SerializationError


class Serializer(ABC):
    """Called once for each argument and result, and for the context, on both sides. It must be thread-safe."""

    @abstractmethod
    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Return `entity` as plain data: dict, list, str, number, bool, None."""

    @abstractmethod
    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Undo `serialize_entity`."""

    @abstractmethod
    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        """Return the caller's context as a dict with string keys."""

    @abstractmethod
    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        """Undo `serialize_context`."""


class NoOpSerializer(Serializer):
    """Passes everything on as it is. A context that is not a dict has to have a ``to_dict()``."""

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Return `entity`."""
        return entity

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Return `entity`."""
        return entity

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        """Return the context as a new dict.

        Raises:
            SerializationError: it is neither a dict nor None, and has no ``to_dict()``.
        """
        if ctxt is None:
            return {}
        if isinstance(ctxt, dict):
            return dict(ctxt)
        if not hasattr(ctxt, "to_dict"):
            raise SerializationError(f"a context is a dict or has a to_dict(), and {type(ctxt).__name__} is neither")
        return dict(ctxt.to_dict())

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        """Return the dict."""
        return ctxt


class JsonPayloadSerializer(NoOpSerializer):
    """Turns dataclasses, attrs classes, enums, sets, dates, UUIDs, bytes and the like into what JSON has.

    The receiver gets dicts, lists and text; bytes as base64 text, and the keys of dicts as strings. NaN and infinity
    stay what they are, and are an error where the codec is JSON.
    """

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Return `entity` in the types that JSON has."""
        try:
            return msgspec.to_builtins(entity, str_keys=True)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise SerializationError(f"cannot be turned into plain data: {exc}") from exc


def check_serializer(serializer: Serializer) -> None:
    """Refuse a serializer that msgbus would have to await, and a class in place of an object.

    Raises:
        TypeError: one of its methods is ``async``, or it is a class.
    """
    if isinstance(serializer, type):
        name = serializer.__name__
        raise TypeError(f"a serializer is an object with methods, and {name} is a class: {name}()")
    for name in ("serialize_entity", "deserialize_entity", "serialize_context", "deserialize_context"):
        refuse_async(f"{name} of {type(serializer).__name__}", getattr(serializer, name, None))
