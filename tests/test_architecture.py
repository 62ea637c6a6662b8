"""Who imports whom: no circles, and only as the picture in docs/architecture.md says."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import NamedTuple

import pytest

import msgbus.aio
import msgbus.lowlevel
from msgbus.drivers.base import PUBLIC
from msgbus.drivers.registry import DRIVERS as DRIVERS_GROUP
from tests.support import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()

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
    "msgbus.otel": "serve --metrics",
    "msgbus.versions.version_is_compatible": "checks --version before anything is sent",
    "msgbus.versions.is_version": "reads the versions that a server says",
    "msgbus.versions.parse_version": "likewise",
    "msgbus.drivers.registry.DRIVERS": "lists drivers without importing them",
    "msgbus.drivers.registry.load_driver_class": "lists drivers",
    "msgbus.exceptions": "has an exit code for each",
    "msgbus.foreign.printable": "prints what servers answer",
    "msgbus.foreign.printable_json": "likewise",
    "msgbus.foreign.printable_lines": "likewise",
    "msgbus.foreign.text_of": "likewise",
    "msgbus.foreign.traceback_of": "likewise",
    "msgbus.describing.Description": "what a server says of itself",
    "msgbus.describing.Interface": "likewise",
    "msgbus.describing.MethodInfo": "likewise",
    "msgbus.schemas.REF": "reads the schemas in that",
    "msgbus.encoding.decode_request": "shows the request of a dead letter",
    "msgbus.message.POLICIES": "the values of --delivery",
    "msgbus.notify.notification.PRIORITIES": "the values of --level",
    "msgbus.notify.notification.make_message": "notify: what is sent",
    "msgbus.notify.sending.send_notification": "notify: a notifier would log an error, and not raise it",
    "msgbus.values.JSON_VALUES": "prints values as JSON",
    "msgbus.values.is_plain": "likewise",
}
"""What the command uses besides the public names, and what for."""

CONFORMANCE = {
    "msgbus.configuration": "registers the core's options, to set some of them",
    "msgbus.drivers.fake.get_bus": "the harness of the driver in memory cuts its connections",
    "msgbus.message.FIRST_WINDOW": "how far a generator may be ahead of a reader that has just begun",
    "msgbus.message.JSON": "checks send messages that no client would write",
    "msgbus.encoding.decode_request": "looks at what was sent",
}
"""What the conformance suite uses besides the public names, and what for."""


class Import(NamedTuple):
    """A module imports another, or a name of it.

    Attributes:
        line: where it does so.
        for_types: only type checkers see it.
    """

    by: str
    module: str
    name: str | None
    line: int = 0
    for_types: bool = False

    def __str__(self) -> str:
        return ".".join(filter(None, [self.module, self.name]))

    @property
    def where(self) -> str:
        """The file and the line, in the form that editors recognise."""
        path = MODULES[self.by].relative_to(ROOT) if self.by in MODULES else self.by
        return f"{path}:{self.line}{', for types only' if self.for_types else ''}"


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
            yield from (Import(module, name, None, node.lineno, for_types) for name in names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: write imports in full"
            assert node.module is not None
            for alias in node.names if node.module in known else ():
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield Import(module, whole, None, node.lineno, for_types)
                else:
                    yield Import(module, node.module, alias.name, node.lineno, for_types)


MODULES = modules()
IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path, MODULES)]


def reached(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Where the arrows lead from `start`, directly or over others."""
    found: set[str] = set()
    new = {start}
    while new := {end for begin, end in arrows if begin in new} - found:
        found |= new
    return found


def circles_of(imports: list[Import]) -> list[str]:
    """A text for each set of modules that import each other, directly or through others, with these imports."""
    arrows = {(found.by, found.module) for found in imports if found.by != found.module}
    modules = {module for arrow in arrows for module in arrow}
    onward = {module: reached(module, arrows) for module in modules}
    circles = {tuple(sorted({module} | {m for m in onward[module] if module in onward[m]})) for module in modules}
    return [
        "\n".join(
            [
                f"{', '.join(circle)} import each other:",
                *sorted({f"    {a.where} imports {a.module}" for a in imports if {a.by, a.module} <= set(circle)}),
            ]
        )
        for circle in sorted(circles)
        if len(circle) > 1
    ]


WAYS_OUT = """
How to open a circle: move what both need to a module of its own; or pass to the constructor what is needed, and not
the whole object; or describe what is needed of the other in a Protocol, as `Wire` of drivers/kombu/channel.py does.
"""


def test_imports_go_in_no_circle() -> None:
    """Each module can be read and tested with only the modules that it imports.

    Imports within functions count, and those for type checkers too.
    """
    assert not (circles := circles_of(IMPORTS)), "\n".join([*circles, WAYS_OUT])


def test_a_circle_is_shown_with_the_lines_that_make_it() -> None:
    """The text of a failure lists the imports of circles, of two modules or more, and no others."""
    found = [
        Import("a", "b", None, 1),
        Import("b", "c", "name", 2),
        Import("c", "a", None, 3, for_types=True),
        Import("c", "d", None, 4),
        Import("e", "e", None, 5),
    ]
    assert circles_of(found) == [
        "a, b, c import each other:\n"
        "    a:1 imports b\n"
        "    b:2 imports c\n"
        "    c:3, for types only imports a"
    ]  # fmt: skip
    assert circles_of(found[:2]) == []


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


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    """A file of more than 500 lines has more than one job."""
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "msgbus").rglob("*.py")}
    assert {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > 500} == {}


def test_the_pages_name_loggers_that_there_are() -> None:
    """An operator who sets an alarm on a logger gets its lines."""
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    named = re.findall(r"^\| `(msgbus[\w.]*)` \| (?:DEBUG|INFO|WARNING|ERROR) \|", text, re.MULTILINE)
    assert len(named) >= 5
    paths = {name: ROOT / f"{name.replace('.', '/')}.py" for name in named}
    assert [name for name, path in paths.items() if not path.exists() or "get_logger" not in path.read_text()] == []


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


def defined_in(path: pathlib.Path) -> set[str]:
    """The names that a module defines, and ``Class.name`` of those in its classes."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = names_of(node)
        found |= names
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in names_of(inner)}
    return found


def names_of(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}


def section_of(title: str) -> str:
    """A section of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(("title", "at_least"), [("Where to change what", 70), ("Threads and asyncio", 40)])
def test_the_page_says_what_is_where(title: str, at_least: int) -> None:
    """Each name in the table is defined in the file before it: so the table stays in step with the code."""
    folders = (ROOT / "msgbus", ROOT / "msgbus" / "drivers")
    missing, checked = [], 0
    for cell in re.findall(r"(?<=\|)[^|\n]+(?=\|)", section_of(title)):
        file, names = "", set[str]()
        for word in re.findall(r"`(.+?)`", cell):
            if word.endswith(".py"):
                found = [folder / word for folder in folders if (folder / word).exists()]
                file, names = word, defined_in(found[0]) if found else set()
            elif word not in names:
                missing.append(f"{word} in {file or 'no file'}")
            checked += 1
    assert missing == []
    assert checked >= at_least


def test_the_page_names_each_file_for_asyncio() -> None:
    """All of them, and the files whose code both worlds share, are in the section that compares these."""
    section = section_of("Threads and asyncio")
    files = {f"aio/{path.name}" for path in (ROOT / "msgbus" / "aio").glob("*.py")} - {"aio/__init__.py"}
    files |= {path.name for path in (ROOT / "msgbus").glob("base_*.py")}
    assert sorted(file for file in files if f"`{file}`" not in section) == []


def strays(imports: list[Import], rooms: dict[str, str], arrows: set[tuple[str, str]]) -> list[str]:
    """A text for each import that no arrow of the picture allows."""
    allowed = {room: reached(room, arrows) for room in set(rooms.values())}
    return [
        f"{found.where}: {found.by} imports {found}, which is in the room {rooms[found.module]}. "
        f"The room {rooms[found.by]} may use {', '.join(sorted(allowed[rooms[found.by]])) or 'no other'}"
        for found in imports
        if rooms[found.module] not in {rooms[found.by]} | allowed[rooms[found.by]]
    ]


def test_imports_follow_the_arrows_of_the_picture() -> None:
    """A room imports only from where its arrows lead, directly or over others: for example, the core no driver."""
    arrows = drawn()
    rooms = set(ROOMS.values())
    assert [room for room in rooms if room in reached(room, arrows)] == [], "the arrows of the picture go in a circle"
    wrong = strays(IMPORTS, ROOMS, arrows)
    assert not wrong, "\n".join([*wrong, "docs/architecture.md draws who may import whom."])


def test_a_stray_import_is_shown_with_what_is_allowed() -> None:
    """The text of a failure names the line, both rooms, and where that room may import from."""
    rooms = {"low": "basics", "high": "core", "out": "kombu"}
    arrows = {("core", "basics"), ("kombu", "core")}
    imports = [Import("high", "low", None, 1), Import("high", "out", "Driver", 2), Import("low", "high", None, 3)]
    assert strays(imports, rooms, arrows) == [
        "high:2: high imports out.Driver, which is in the room kombu. The room core may use basics",
        "low:3: low imports high, which is in the room core. The room basics may use no other",
    ]


def test_the_picture_has_no_arrow_too_many() -> None:
    """Behind each arrow there is an import."""
    there = {(ROOMS[found.by], ROOMS[found.module]) for found in IMPORTS}
    assert drawn() - there == set()


def is_public(found: Import) -> bool:
    """Whether a name is public for the authors of drivers or of services, wherever it was imported from."""
    names = msgbus.aio.__all__ if found.module.startswith("msgbus.aio") else msgbus.__all__
    return found.name in PUBLIC.get(found.module, ()) or found.name in names


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


def test_the_driver_for_oslo_messaging_uses_public_names() -> None:
    """Others can build an RPC on the same names."""
    used = {found for found in foreign_to("oslo") if found.module != "msgbus.lowlevel"}
    assert sorted(map(str, used)) == []
    names = {found.name for found in foreign_to("oslo") if found.module == "msgbus.lowlevel"}
    assert names <= set(msgbus.lowlevel.__all__)


# The one clock

OWN_CLOCKS = ("msgbus.cli.", "msgbus.conformance.")
"""They only measure times to show them; nothing in msgbus waits by these."""


def test_one_module_reads_a_clock() -> None:
    """All others ask `Loop.now`: tests of services replace the functions of `time`, and a loop may have another clock.

    The wall clock, `time.time`, is another matter: it is for what other processes read.
    """
    clocks = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "clock_gettime"}
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in MODULES.items()
        if not module.startswith(OWN_CLOCKS)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in clocks)
        or (isinstance(node, ast.ImportFrom) and node.module == "time")
    }
    assert {place.partition(":")[0] for place in found} == {"msgbus/drivers/toolkit/steps.py"}, "\n".join(sorted(found))


# The doors of the drivers

LIBRARIES = {"amqp", "cproton", "kombu", "nats", "proton", "redis", "scramp", "vine", "zmq"}
"""The libraries of message systems."""
DOORS = [
    module
    for module in MODULES
    if (module.startswith("msgbus.drivers.") and module.count(".") == 2) or module.startswith("msgbus.drivers.toolkit.")
]
"""The modules of drivers that other code imports, and those of the toolkit, which third parties import."""


def imported_by(module: str) -> set[str]:
    """The packages outside the standard library that importing a module imports, in a separate process."""
    # What is there already belongs to the environment: a package may have itself imported whenever Python starts.
    code = (
        f"import sys; there = set(sys.modules); import {module}; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - there})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) - sys.stdlib_module_names


@pytest.mark.parametrize("module", DOORS)
def test_importing_a_driver_imports_no_driver_library(module: str) -> None:
    """`msgbus drivers` and the sample configuration load every driver: none needs its library for that."""
    assert imported_by(module) & LIBRARIES == set()


def test_importing_msgbus_imports_one_library() -> None:
    """Importing msgbus imports the codec alone, so it is fast: no driver, and no configuration."""
    # typing_extensions: msgspec imports that where it is installed.
    assert imported_by("msgbus") - {"typing_extensions"} == {"msgbus", "msgspec"}


@pytest.mark.parametrize(
    ("url", "executor"), [("fake://", None), ("fake://", "threading"), ("zmq://", None), ("rabbit://", None)]
)
def test_what_does_not_need_asyncio_does_not_import_it(url: str, executor: str | None) -> None:
    """A synchronous program, also one that serves plain methods, starts without asyncio: only `msgbus.aio` needs it."""
    code = f"""
import sys
from oslo_config import cfg
there = "asyncio" in sys.modules
import msgbus, msgbus.rpc, msgbus.drivers.toolkit, msgbus.drivers.fake
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
transport = msgbus.get_rpc_transport(conf, {url!r})
client = msgbus.get_rpc_client(transport, msgbus.Target(topic="t"), timeout=5)
class Endpoint:
    def add(self, ctxt, a, b):
        return a + b
server = msgbus.get_rpc_server(transport, msgbus.Target(topic="t", server="s"), [Endpoint()], executor={executor!r})
if {url!r} == "fake://":
    server.start()
    assert client.call({{}}, "add", a=1, b=2) == 3
    server.stop()
    server.wait()
transport.cleanup()
assert "msgbus.aio" not in sys.modules
print(there, "asyncio" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("False False\n", "")


def test_all_drivers_are_among_the_doors() -> None:
    """All our installed drivers are in `DRIVERS`, and they and the toolkit are in `DOORS`."""
    ours = {point.module for point in entry_points(group=DRIVERS_GROUP) if point.module.startswith("msgbus.")}
    assert ours == {f"msgbus.drivers.{driver}" for driver in DRIVERS}
    assert ours | {"msgbus.drivers.toolkit"} <= set(DOORS)
