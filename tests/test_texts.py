"""The texts that users read are plain English: the README, the documentation, help texts and errors.

`tox -e lint` runs proselint, whose rules are fixed: clichés, archaic and needless words. These tests hold the project's
own rules. Linters that take such rules did not fit: Vale downloads a program when it is first run, textlint needs
Node.js, and codespell's dictionary takes single words only.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT

LONGEST = 35
"""Words in a sentence. Aim at 20, and see above 30 whether it is two sentences."""
BANNED = {
    r"all the same": "anyway, still",
    r"anew": "again",
    r"as ever": "as before, still",
    r"at the (least|most)": "at least, at most",
    r"behind the question mark": "after the question mark",
    r"for ever": "forever",
    r"handed? over": "delivered, published or passed, whichever it is",
    r"hopeless": "permanent",
    r"mended?": "fix",
    r"now and then": "from time to time",
    r"patience": "timeout",
    r"(is|are|be|has|have|does|do|can|will) (not|no|never|nobody|nothing) .{,60} any more": "no longer",
    r"save for": "except",
    r"take(n|s)? (its|their) leave": "unsubscribe",
    r"verdict": "result, decision",
    r"whoever": "anybody who, the caller, the sender",
    r"wins? over": "overrides",
}
"""What once stood in these texts and had to be read twice -> what to write."""
PAGES = [
    path
    for path in sorted(
        {
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "examples").rglob("README.md"),
            *(ROOT / "msgbus" / "cli" / "template").glob("*.md"),
        }
    )
    if path.name != "CHANGELOG.md" and "_build" not in path.parts
]
GENERATED = {"docs/performance.md", "docs/performance/explanation.md"}
"""Their sentences hold many figures."""
END = re.compile(r"(?<=[.!?])[\")*_]*\s+(?=[\"(*_A-Z]|msgbus )|(?<=;)\s")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page: without blocks of code, with a word for each piece of code. A cell of a table is one."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->|^#+ .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*:]|\d+\.) )|\n(?=\|)| \| ", text):
        words = re.sub(r"^\s*(?:[-*:]|\d+\.) +", "", block).strip("| ").split()
        yield from END.split(" ".join(words))


def strings(path: pathlib.Path) -> Iterator[str]:
    """The texts in a module that may be printed: its strings, without docstrings. `{}` stands for a value."""
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def banned_in(text: str) -> list[str]:
    """What to change in a text."""
    return [
        f"write {better!r} in place of {found[0]!r}: {text}"
        for phrase, better in BANNED.items()
        for found in re.finditer(rf"\b{phrase}\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_plain(page: pathlib.Path) -> None:
    """No sentence is too long, and none has a phrase that had to be read twice."""
    found = list(sentences(page.read_text()))
    assert [each for text in found for each in banned_in(text)] == []
    if str(page.relative_to(ROOT)) not in GENERATED:
        assert [text for text in found if len(text.split()) > LONGEST] == []


def test_help_and_errors_are_plain() -> None:
    """Likewise the texts in the code."""
    modules = sorted((ROOT / "msgbus").rglob("*.py"))
    assert [(str(path), each) for path in modules for text in strings(path) for each in banned_in(text)] == []


@pytest.mark.parametrize("text", ["A queue is kept for ever.", "It is not read any more.", "--url wins over the file."])
def test_a_banned_phrase_is_found(text: str) -> None:
    """In any sentence, whatever its capitals."""
    assert banned_in(text.upper())


def test_a_sentence_ends_at_its_stop() -> None:
    """Code, links, lists and cells do not confuse it."""
    text = (
        "One `a. B`. Two [c](d.md)\nand on. msgbus is three.\n\n- four\n- Five.\n\n| six | seven |\n\n```\nNo.\n```\n"
    )
    assert [each for each in sentences(text) if each] == [
        "One CODE.",
        "Two c and on.",
        "msgbus is three.",
        "four",
        "Five.",
        "six",
        "seven",
    ]
