"""The unit tests notice what is broken in the core: each mutant of `tests.mutants.core` makes a test fail."""

from __future__ import annotations

import pathlib
import re

import pytest

from tests.mutants.core import OTHERS, ROOT, TEN, Mutant, copy_of_the_project, why_unnoticed

MUTANTS = (*TEN, *OTHERS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of msgbus and its tests, which each mutant breaks and mends again."""
    return copy_of_the_project(tmp_path_factory.mktemp("project"))


# The ten are tried each time; to try all takes minutes.
@pytest.mark.parametrize(
    "mutant",
    [
        *(pytest.param(mutant, id=mutant.name) for mutant in TEN),
        *(pytest.param(mutant, id=mutant.name, marks=pytest.mark.soak) for mutant in OTHERS),
    ],
)
def test_mutant_is_noticed(mutant: Mutant, project: pathlib.Path) -> None:
    """The test that holds its promise fails where the promise is broken."""
    assert (reason := why_unnoticed(mutant, project)) is None, reason


def test_each_mutant_says_what_it_breaks() -> None:
    """It has a name of its own, a promise, and a file, a text and a test that exist; and there are enough of them."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30
    assert len(TEN) == 10
    for mutant in MUTANTS:
        assert mutant.promise.endswith("."), mutant.name
        assert mutant.old != mutant.new, mutant.name
        code = (ROOT / "msgbus" / mutant.file).read_text()
        assert code.count(mutant.old) == 1, f"{mutant.name}: what it changes in msgbus/{mutant.file} has changed"
        file, _, test = mutant.test.partition("::")
        assert re.search(rf"^(async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), mutant.test


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nobody has written this", "", r"is 0 times in msgbus/pending\.py.* write the mutant anew"),
        (
            "if now >= self.deadline:",
            "if now >= self.deadline:  # the same",
            r"survives core/test_pending\.py::test_a_call_ends",
        ),
        ("if now >= self.deadline:", "if now >=:", r"pytest could not run it \(exit code [1245]\)"),
    ],
)
def test_a_mutant_that_shows_nothing_is_an_error(old: str, new: str, says: str, project: pathlib.Path) -> None:
    """A mutant whose text is not found, that changes nothing, or that is not code does not count as noticed."""
    mutant = Mutant(
        "it", "A promise.", "pending.py", old, new, "core/test_pending.py::test_a_call_ends_at_its_deadline"
    )
    reason = why_unnoticed(mutant, project)
    assert reason is not None
    assert re.search(says, reason)
