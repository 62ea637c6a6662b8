"""A typed service, for tests of servers and clients. Its annotations are text, as in modules of many users."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from decimal import Decimal
from functools import wraps
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
import pydantic

from msgbus import Target, expected_exceptions, expose

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Image(msgspec.Struct):
    name: str
    width: Positive = 1


@dataclasses.dataclass
class Thumbnail:
    image: Image
    size: tuple[int, int]
    at: datetime


class User(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    name: str
    since: datetime


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Deep(msgspec.Struct):
    x: Positive


class Caller(msgspec.Struct):
    user: str


def doubled(func: Any) -> Any:
    """A decorator as users write it."""

    @wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) * 2

    return run


class Base:
    def inherited(self, ctxt: object, colour: Colour) -> str:
        return colour.name


class Images(Base):
    """Each method says in `runs` that it has run."""

    target: ClassVar[Target] = Target(namespace="images", version="1.2")

    class Nested(msgspec.Struct):
        """Its name is known in this class alone."""

        x: int

    def __init__(self) -> None:
        self.runs: list[str] = []

    def resize(self, ctxt: dict[str, Any], image: Image, size: tuple[int, int], at: datetime) -> Thumbnail:
        self.runs.append("resize")
        return Thumbnail(image, size, at)

    def what(self, ctxt: dict[str, Any], value: Any) -> str:
        """The type of what has come."""
        return type(value).__name__

    def scalars(self, ctxt: object, id: UUID, price: Decimal, colour: Colour, raw: bytes, count: int | None) -> Any:
        return [type(value).__name__ for value in (id, price, colour, raw, count)]

    def area(self, ctxt: object, shape: Circle | Square) -> float:
        return shape.radius * 3 if isinstance(shape, Circle) else shape.side**2

    def names(self, ctxt: object, users: list[User]) -> list[User]:
        assert all(isinstance(user, User) for user in users)
        return users

    def by_number(self, ctxt: object, texts: dict[int, str]) -> dict[int, str]:
        return {number + 1: text for number, text in texts.items()}

    def numbers(self, ctxt: object, *, first: Positive = 5, **others: Positive) -> list[int]:
        return [first, *others.values()]

    def nested(self, ctxt: object, it: Nested) -> Nested:
        return it

    def deep(self, ctxt: object, it: dict[str, list[dict[str, Deep]]]) -> None: ...

    def who(self, ctxt: Caller) -> str:
        return ctxt.user

    def raw(self, ctxt: object) -> bytes:
        return b"\xff\x00"

    def half(self, ctxt: object, image: Image, rest):  # type: ignore[no-untyped-def]  # that is what it is about
        return [type(image).__name__, type(rest).__name__]

    def thumbnails(self, ctxt: object, image: Image, count: int) -> Iterator[Thumbnail]:
        self.runs.append("thumbnails")
        for number in range(count):
            yield Thumbnail(image, (number, number), datetime(2026, 1, 2))

    def bad_result(self, ctxt: object) -> Image:
        return object()  # type: ignore[return-value]  # likewise

    def nan(self, ctxt: object) -> list[Square]:
        return [Square(float("nan"))]

    @doubled
    def decorated(self, ctxt: object, text: Annotated[str, msgspec.Meta(min_length=2)]) -> str:
        return text

    @expose
    @expected_exceptions(LookupError)
    def missing(self, ctxt: object, colour: Colour) -> str:
        raise LookupError(colour.name)

    @expected_exceptions(LookupError)
    def missing_later(self, ctxt: object, colour: Colour) -> Iterator[Image]:
        yield Image(colour.name)
        raise LookupError(colour.name)

    @staticmethod
    def static(ctxt: object, width: Positive) -> int:
        return width

    @classmethod
    def of_class(cls, ctxt: object, width: Positive) -> str:
        return f"{cls.__name__} {width}"

    def type_error(self, ctxt: object, width: int) -> int:
        return width + "x"  # type: ignore[operator]  # likewise


class AsyncImages:
    def __init__(self) -> None:
        self.runs: list[str] = []

    async def resize(self, ctxt: object, image: Image, size: tuple[int, int], at: datetime) -> Thumbnail:
        self.runs.append("resize")
        return Thumbnail(image, size, at)

    async def thumbnails(self, ctxt: object, image: Image, count: int) -> AsyncIterator[Thumbnail]:
        self.runs.append("thumbnails")
        for number in range(count):
            yield Thumbnail(image, (number, number), datetime(2026, 1, 2))

    def plain(self, ctxt: object, image: Image) -> Image:
        return image

    @expected_exceptions(LookupError)
    async def missing(self, ctxt: object, colour: Colour) -> str:
        raise LookupError(colour.name)
