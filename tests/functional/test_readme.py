"""The README, the first steps and the example are true. `tests.functional.pages` has the rules for blocks."""

from __future__ import annotations

import pathlib
import re
from contextlib import ExitStack

import pytest
from oslo_config import cfg

import msgbus
from msgbus import exceptions
from msgbus.cli.errors import EXIT_CODES, code_of
from msgbus.options import list_opts
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.pages import ROOT, Terminal, check_rules, run

README = ROOT / "README.md"
START = ROOT / "docs" / "start.md"
ERRORS = ROOT / "docs" / "reference" / "errors.md"


@pytest.mark.timeout(240)
def test_all_blocks_work_when_pasted_in_order(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """Files, commands and the output that is shown: all as the README says."""
    run(README, tmp_path, rabbitmq.url)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/tutorial.md"])
def test_all_blocks_work_without_a_message_system(page: str, tmp_path: pathlib.Path) -> None:
    """A reader who has no RabbitMQ, and writes zmq:// wherever its URL stands, sees the same."""
    run(ROOT / page, tmp_path, "zmq://")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [README, START], ids=["README", "start"])
def test_all_blocks_work_on_qpid(page: pathlib.Path, qpid_durable: Qpid, tmp_path: pathlib.Path) -> None:
    """The same terminals, with another message system in the URL."""
    run(page, tmp_path, qpid_durable.url)


def test_rules_of_blocks_are_known() -> None:
    """No block is left out by a comment that is mistyped, and every block is one that the test above can run."""
    install, tests = [block.text for block in check_rules(README)]
    assert "pip install" in install
    assert tests == "tests/run\n"


def figures(text: str) -> set[str]:
    """The numbers in a text, such as 4.3 and 23,736. Targets of links do not count."""
    return set(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\([^)]*\)", "]", text)))


def test_figures_are_those_of_the_measurements() -> None:
    """Each number among the reasons for msgbus is on a page that its reason links to, which a run has written.

    If this fails after a new run, write the new numbers into the README, and see whether its sentences still hold.
    """
    reasons = README.read_text().partition("## Why msgbus")[2].partition("\n\n## ")[0]
    points = re.split(r"^(?=\d\. )", reasons, flags=re.MULTILINE)[1:]
    assert len(points) == 6
    for point in points:
        pages = re.findall(r"\((docs/(?:performance|reliability)\.md)\)", point)
        known = figures("".join((ROOT / page).read_text() for page in pages))
        assert figures(point[3:]) <= known, point


def test_figures_of_the_explanations_are_those_of_the_measurements() -> None:
    """The comparison with other projects and the page of limits name no other speed, ratio or size either."""
    known = figures((ROOT / "docs" / "performance.md").read_text())
    comparison = (ROOT / "docs" / "explanation" / "comparison.md").read_text()
    runs = [part for part in comparison.split("\n\n") if part.startswith("In the recorded run")]
    assert len(runs) == 4
    costs = (ROOT / "docs" / "explanation" / "limits.md").read_text().partition("## What it costs")[2]
    for text in (*runs, costs):
        assert figures(text) <= known, text


def rows_of(text: str) -> list[list[str]]:
    """The rows of all tables of scenarios in a text: sent is cell 1, lost to late are 4 to 6, forgotten is 10."""
    return [line.split(" | ") for line in text.splitlines() if re.match(r"\| .* \| \d+ \| ", line)]


def test_reliability_is_as_the_readme_says() -> None:
    """Nothing was lost, ran twice against the promise, or ended late; in the named run, nothing was forgotten."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    head = "| what is broken | sent | hit | errors | lost | doubled | late | other | ran twice | not kept | forgotten |"
    assert head in text
    assert len(rows_of(text)) > 100
    assert [row for row in rows_of(text) if row[4:7] != ["0", "0", "0"]] == []
    own = text.partition("## RabbitMQ 4.3, three nodes")[2].partition("\n## ")[0]
    assert "39 faults" in own
    assert {row[10] for row in rows_of(own)} == {"0"}


def test_table_of_errors_is_complete() -> None:
    """Each error that a user can meet is there, with the exit code that the command has for it."""
    row = re.compile(r"^\| (?:\S )?`(?P<name>\w+)`:? \|.*\| (?P<code>\d?) ?\|$", re.MULTILINE)
    codes = {found["name"]: found["code"] for found in row.finditer(ERRORS.read_text())}
    names = {name for name, value in vars(exceptions).items() if isinstance(value, type) and name in msgbus.__all__}
    assert set(codes) == names - {"MessagingException"}
    for name, code in codes.items():
        error = getattr(exceptions, name).__new__(getattr(exceptions, name))
        error.maybe_delivered = False
        if name != "MessageDeliveryFailure":  # only its subclasses are raised
            assert str(int(code_of(error))) == code, name


def test_table_of_exit_codes_is_that_of_the_help() -> None:
    """Word for word."""
    for line in EXIT_CODES.splitlines():
        code, text = line.split(maxsplit=1)
        assert f"| {code} | {text} |" in ERRORS.read_text()


def test_configuration_of_the_example_names_real_options_and_their_defaults() -> None:
    """What a reader uncomments changes nothing yet, and is spelt as it has to be."""
    path = ROOT / "examples" / "hello" / "hello.conf"
    options = {(group or "DEFAULT", opt.name): opt for group, opts in list_opts() for opt in opts}
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(path)])
    msgbus.get_rpc_transport(conf).cleanup()
    group, shown = "", 0
    for line in path.read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            group = found[1]
        elif found := re.fullmatch(r"(#?)(\w+) = (.*)", line):
            opt = options[group, found[2]]
            if found[1] and opt.default is not None:
                assert str(opt.default).lower() == found[3], line
                shown += 1
    assert shown > 3


def test_example_runs(rabbitmq: RabbitMQ) -> None:
    """The client of the example with its two servers, without what `examples/hello/run` installs."""
    folder = ROOT / "examples" / "hello"
    url = f"export MSGBUS_URL={rabbitmq.url}"
    with ExitStack() as cleanup:
        for name in ("one", "two"):
            server = Terminal(folder)
            cleanup.callback(server.close)
            server.run_until_ready(
                f"{url}\nmsgbus serve server:Hello --topic hello --server {name} --config-file hello.conf\n"
            )
        client = Terminal(folder)
        cleanup.callback(client.close)
        printed = client.run(f"{url}\npython client.py\n").splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "call",
        "call, server two",
        *["multicall"] * 3,
        "the server raised ValueError",
        "no server listens at no-such-service",
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    """Sphinx checks the pages of docs/; these are outside of it. A link to a file in the repository counts as well."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)", text)
    files = [re.sub(r"^https://.*?/(?:blob|raw)/main/", "", link) for link in links]
    assert [file for file in files if "://" not in file and not (ROOT / file).exists()] == []
