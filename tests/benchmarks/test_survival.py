"""The faults notice what is lost, and the page of the documentation says what they observed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "benchmarks" / "__main__.py").is_file():
    pytest.skip("benchmarks/ lies in a checkout only", allow_module_level=True)

from benchmarks.survival import __main__ as command
from benchmarks.survival import faults, report
from benchmarks.survival.adapters import ADAPTERS
from benchmarks.survival.contenders import CONTENDERS
from benchmarks.survival.items import item, number_of

RESULT = PROJECT / "benchmarks" / "results" / "survival.json"
NAMES = [contender.name for contender in CONTENDERS]


@cache
def stored() -> Any:
    return json.loads(RESULT.read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "fault", "verdict"),
    [
        ("persistcoll Queue", "kill producer", "yes"),
        ("persistcoll Queue", "damage", "yes"),
        ("persistcoll SQLiteAckQueue", "kill consumer", "yes"),
        # These two must be noticed: by default get removes the item, and a changed letter is no error.
        ("persistcoll SQLiteQueue", "kill consumer", "no"),
        ("persist-queue Queue", "damage", "no"),
    ],
)
def test_a_fault_is_done_and_what_is_lost_is_noticed(
    name: str, fault: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = CONTENDERS[NAMES.index(name)]
    if contender.missing:
        pytest.skip(f"needs {', '.join(contender.missing)}")
    monkeypatch.setattr(faults, "_ROUNDS", 2)

    outcome = command.run(contender, fault)

    assert outcome.verdict == verdict, outcome
    assert outcome.counts["put"] > 0
    assert stored()["outcomes"][name][fault]["verdict"] == verdict


def test_the_stored_result_has_every_outcome() -> None:
    outcomes = stored()["outcomes"]
    assert list(outcomes) == NAMES == list(ADAPTERS)
    for name, found in outcomes.items():
        assert list(found) == list(faults.FAULTS), name
        for fault, outcome in found.items():
            assert outcome["verdict"] in ("yes", "partly", "no", "-"), (name, fault)
            assert bool(outcome["counts"]) == (outcome["verdict"] != "-"), (name, fault)
    assert {package for contender in CONTENDERS for package in contender.packages} < set(stored()["versions"])


def test_the_documentation_shows_the_stored_result() -> None:
    assert RESULT.with_suffix(".txt").read_text("utf-8") == report.text(stored())
    page = (PROJECT / "docs" / "explanation" / "comparison.rst").read_text("utf-8")
    assert report.matrix(stored()) in page
    for name, version in stored()["versions"].items():
        assert f"{name} {version}" in " ".join(page.split()), name


def test_an_altered_item_has_no_number() -> None:
    assert number_of(item(7)) == 7
    assert number_of(item(7, 1_000)) == 7
    assert number_of(item(7).replace("7", "8", 1)) is None
    assert number_of(None) is None


def test_a_part_of_the_run_replaces_no_stored_whole(capsys: pytest.CaptureFixture[str]) -> None:
    before = RESULT.read_bytes()
    with pytest.raises(SystemExit):
        command.main(["--save", "--fault", "damage"])
    assert "only a whole run is stored" in capsys.readouterr().err
    assert RESULT.read_bytes() == before


def test_the_command_prints_what_was_observed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(contender: Any, directory: Path) -> faults.Outcome:
        return faults.Outcome("no", "3 of 5 lost", {"put": 5})

    monkeypatch.setattr(command, "FAULTS", {"damage": nothing})
    assert command.main(["--contender", "persistcoll Queue", "--fault", "damage"]) == 0
    assert "persistcoll Queue  no  3 of 5 lost\n" in capsys.readouterr().out
