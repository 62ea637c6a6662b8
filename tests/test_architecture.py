"""Who imports whom: no circles, and only as the picture in docs/architecture.md says."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import msgbus
from msgbus.drivers.base import PUBLIC
from tests.support import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()

CIRCLES = [
    [
        "msgbus.drivers.kombu.driver",
        "msgbus.drivers.kombu.feed",
        "msgbus.drivers.kombu.publisher",
        "msgbus.drivers.kombu.questions",
        "msgbus.drivers.kombu.refusals",
        "msgbus.drivers.kombu.session",
    ],
    [
        "msgbus.drivers.qpid.driver",
        "msgbus.drivers.qpid.feed",
        "msgbus.drivers.qpid.relay",
        "msgbus.drivers.qpid.session",
    ],
]
"""Circles for type checkers only: the parts of a connection name its class, and that names the driver's."""

PRIVATE = {
    ("zmq", "msgbus.configuration.read_option"): "a file of hosts names no exchange: it is the configured one",
    ("zmq", "msgbus.url.mask"): "a URL of this driver has no hosts, and what looks like one may be a password",
}
"""What drivers use that is not public, and why: the room and the name."""

CLI = {
    "msgbus.configuration": "reads the files that the command line names",
    "msgbus.dead_letters": "the commands `msgbus dead`",
    "msgbus.dead_letters.Letters": "likewise",
    "msgbus.dead_letters.Stored": "likewise",
    "msgbus.versions.version_is_compatible": "checks --version before anything is sent",
    "msgbus.drivers.registry.DRIVERS": "lists drivers without importing them",
    "msgbus.drivers.registry.load_driver_class": "lists drivers",
    "msgbus.exceptions": "has an exit code for each",
    "msgbus.foreign.printable": "prints what servers answer",
    "msgbus.foreign.printable_json": "likewise",
    "msgbus.foreign.printable_lines": "likewise",
    "msgbus.foreign.text_of": "likewise",
    "msgbus.foreign.traceback_of": "likewise",
    "msgbus.encoding.decode_request": "shows the request of a dead letter",
    "msgbus.values.JSON_VALUES": "prints values as JSON",
    "msgbus.values.is_plain": "likewise",
}
"""What the command uses besides the public names, and what for."""

CONFORMANCE = {
    "msgbus.client.STREAM_WINDOW": "how far a generator may be ahead of its reader",
    "msgbus.configuration": "registers the core's options, to set some of them",
    "msgbus.drivers.fake.get_bus": "the harness of the driver in memory cuts its connections",
    "msgbus.message.JSON": "checks send messages that no client would write",
    "msgbus.encoding.decode_request": "looks at what was sent",
}
"""What the conformance suite uses besides the public names, and what for."""


class Import(NamedTuple):
    """A module imports another, or a name of it.

    Attributes:
        for_types: only type checkers see it.
    """

    by: str
    module: str
    name: str | None
    for_types: bool

    def __str__(self) -> str:
        return ".".join(filter(None, [self.module, self.name]))


def modules() -> dict[str, pathlib.Path]:
    """All modules of msgbus. The template is another distribution's."""
    found = {}
    for path in sorted((ROOT / "msgbus").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "template" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(module: str, path: pathlib.Path, known: dict[str, pathlib.Path]) -> Iterator[Import]:
    """What of msgbus a module imports: at its top, in functions, and for type checkers only."""
    tree = ast.parse(path.read_text())
    conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typing = {
        id(node) for found in conditions if "TYPE_CHECKING" in ast.unparse(found.test) for node in ast.walk(found)
    }
    for node in ast.walk(tree):
        for_types = id(node) in typing
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in known]
            yield from (Import(module, name, None, for_types) for name in names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: write imports in full"
            assert node.module is not None
            for alias in node.names if node.module in known else ():
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield Import(module, whole, None, for_types)
                else:
                    yield Import(module, node.module, alias.name, for_types)


MODULES = modules()
IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path, MODULES)]


def reached(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Where the arrows lead from `start`, directly or over others."""
    found: set[str] = set()
    new = {start}
    while new := {end for begin, end in arrows if begin in new} - found:
        found |= new
    return found


def circles_of(imports: list[Import]) -> list[list[str]]:
    """The sets of modules that import each other, directly or over others."""
    arrows = {(found.by, found.module) for found in imports if found.by != found.module}
    onward = {module: reached(module, arrows) for module in MODULES}
    circles = {tuple(sorted({module} | {m for m in onward[module] if module in onward[m]})) for module in MODULES}
    return sorted(list(circle) for circle in circles if len(circle) > 1)


def test_imports_go_in_no_circle() -> None:
    """Each module can be imported and tested with only the modules that it stands on, those in functions included."""
    assert circles_of([found for found in IMPORTS if not found.for_types]) == []


def test_types_go_in_no_circle() -> None:
    """Each module can be read knowing only those whose classes it names; `CIRCLES` has the exceptions."""
    assert circles_of(IMPORTS) == CIRCLES


# Rooms: how docs/architecture.md draws and lists them


def drawn() -> set[tuple[str, str]]:
    """The arrows of the picture."""
    (picture,) = re.findall(r"^```\{graphviz\}$(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^ *(\w+) -> (\w+)\b", picture, re.MULTILINE))


def listed() -> dict[str, str]:
    """Place -> room, of the table: a folder's place ends with a slash."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (`msgbus/.*`) \|$", PAGE, re.MULTILINE)
    return {place: room for room, places in rows for place in re.findall(r"`([^`]*)`", places)}


def room_of(module: str, places: dict[str, str]) -> str:
    """The room of a module: that of the longest place in which it is."""
    path = str(MODULES[module].relative_to(ROOT))
    fitting = [place for place in places if path == place or (place.endswith("/") and path.startswith(place))]
    assert fitting, f"{path} is in no room of the table in docs/architecture.md"
    return places[max(fitting, key=len)]


PLACES = listed()
ROOMS = {module: room_of(module, PLACES) for module in MODULES}
DRIVERS = ["fake", "kombu", "qpid", "zmq"]


def test_the_table_of_rooms_names_what_is_there() -> None:
    """No place in the table of the architecture page has moved away, and each room of the picture is listed."""
    assert [place for place in PLACES if not (ROOT / place).exists()] == []
    assert set(PLACES.values()) == {room for arrow in drawn() for room in arrow}


def test_the_page_names_each_file_of_the_drivers() -> None:
    """The tables of the drivers' files have all of them, and no other."""
    drivers = ROOT / "msgbus" / "drivers"
    there = {
        str(path.relative_to(drivers)).removeprefix("toolkit/")
        for driver in ("kombu", "qpid", "zmq", "toolkit")
        for path in (drivers / driver).rglob("*.py")
        if path.name != "__init__.py"
    }
    cells = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", PAGE, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    assert sorted(name for name in named if not name.startswith("toolkit/")) == sorted(there)


def test_imports_follow_the_arrows_of_the_picture() -> None:
    """A room imports only from where its arrows lead, directly or over others: for example, the core no driver."""
    arrows = drawn()
    assert [room for room in set(ROOMS.values()) if room in reached(room, arrows)] == []
    wrong = [
        f"{found.by} ({ROOMS[found.by]}) imports {found} ({ROOMS[found.module]})"
        for found in IMPORTS
        if ROOMS[found.module] not in {ROOMS[found.by]} | reached(ROOMS[found.by], arrows)
    ]
    assert wrong == []


def test_the_picture_has_no_arrow_too_many() -> None:
    """Behind each arrow there is an import."""
    there = {(ROOMS[found.by], ROOMS[found.module]) for found in IMPORTS}
    assert drawn() - there == set()


def is_public(found: Import) -> bool:
    """Whether a name is public for the authors of drivers or of services, wherever it was imported from."""
    return found.name in PUBLIC.get(found.module, ()) or found.name in msgbus.__all__


def foreign_to(room: str) -> set[Import]:
    """What a room imports from others that is not public."""
    return {found for found in IMPORTS if room == ROOMS[found.by] != ROOMS[found.module] and not is_public(found)}


@pytest.mark.parametrize("room", [*DRIVERS, "toolkit"])
def test_drivers_use_the_contract_and_the_toolkit_alone(room: str) -> None:
    """What our drivers need, a third party's has too; `PRIVATE` has the exceptions."""
    used = {(room, str(found)) for found in foreign_to(room) if ROOMS[found.module] not in ("toolkit", "loop")}
    assert used == {(by, name) for by, name in PRIVATE if by == room}


@pytest.mark.parametrize(("room", "allowed"), [("cli", CLI), ("conformance", CONFORMANCE)])
def test_the_command_and_the_suite_use_public_names(room: str, allowed: dict[str, str]) -> None:
    """They stand on what everybody can use, but for a few names, each with a reason."""
    used = {str(found) for found in foreign_to(room) if ROOMS[found.module] != "conformance"}
    assert used == set(allowed)


# The doors of the drivers


@pytest.mark.parametrize("driver", DRIVERS)
def test_importing_a_driver_imports_no_driver_library(driver: str) -> None:
    """`msgbus drivers` and the sample configuration load every driver: none needs its library for that."""
    code = f"import sys, msgbus.drivers.{driver}; print(*(name.partition('.')[0] for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"amqp", "cproton", "kombu", "proton", "redis", "zmq"} & set(run.stdout.split()) == set()
