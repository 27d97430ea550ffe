"""The benchmarks run, and store what they promise. No test here measures time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "benchmarks" / "__main__.py").is_file():
    pytest.skip("benchmarks/ lies in a checkout only", allow_module_level=True)

from benchmarks import __main__ as command
from benchmarks import contenders, report
from benchmarks.model import TINY, Contender, Figure, Scenario, Summary
from benchmarks.runner import FORMAT, SCENARIOS, run, run_scenario
from benchmarks.server_contenders import is_there
from persistcoll.servers.address import MYSQL, POSTGRESQL

SUMMARY = {"median", "lower_quartile", "upper_quartile", "least", "greatest"}
# Where these libraries are not installed, the figures say so.
PEERS: dict[str, tuple[str, ...]] = {
    "messages": ("huey", "litequeue", "persistqueue", "sqqueue"),
    "neighbours": ("persistqueue", "diskcache", "litequeue", "huey", "redis"),
    "single": ("persistqueue",),
    "batches": ("queuelib",),
    "power": ("persistqueue",),
    "sql_single": ("persistqueue",),
    "sql_acknowledged": ("persistqueue",),
    "sql_orders": ("persistqueue",),
    "sql_power": ("persistqueue",),
    "dict_reads": ("persistqueue", "diskcache", "sqlitedict"),
    "dict_writes": ("persistqueue", "diskcache", "sqlitedict"),
    "dict_updates": ("diskcache", "sqlitedict"),
}


def toy(*values: float) -> Scenario:
    """Make two contenders: "fast" takes ``values`` in its rounds, "slow" takes 6 in each."""
    remaining = iter(values)
    return Scenario(
        name="toy",
        compared="this with that",
        contenders=[
            Contender("fast", "process", lambda at: {"put": next(remaining)}),
            Contender("slow", "-", lambda at: {"put": 6.0}),
        ],
        figures=[
            Figure("slow / fast", lambda n: n["slow: put"] / n["fast: put"], at_least=2),
            Figure("fast / slow", lambda n: n["fast: put"] / n["slow: put"], at_most=0.1),
            Figure("for information", lambda n: n["fast: put"], unit="us"),
            Figure("of an absent one", lambda n: n["absent: put"], at_least=1),
        ],
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs_and_its_result_is_whole(name: str, tmp_path: Path) -> None:
    server = {"postgres": POSTGRESQL, "mysql": MYSQL}.get(name.partition("_")[0])
    if server is not None and not is_there(server):
        pytest.skip(f"needs a server of {server}")
    result = json.loads(json.dumps(run([name], TINY, str(tmp_path))))

    assert result["format"] == FORMAT
    assert result["machine"].keys() >= {"cpus", "python", "system", "kernel", "file system", "packages"}
    assert result["sizes"]["rounds"] == TINY.rounds
    found = result["scenarios"][name]
    assert found["compared"]
    assert found["seconds"] > 0
    assert found["contenders"]
    assert all(found["contenders"].values())
    assert len(found["rounds"]) == TINY.rounds
    for numbers in found["rounds"]:
        assert numbers.keys() == found["numbers"].keys()
        assert all(value >= 0 for value in numbers.values())
    assert all(summary.keys() == SUMMARY for summary in found["numbers"].values())
    # Whether a peer is there on a server is more than whether its module is.
    peers_there = all(map(contenders.have, PEERS.get(name, ()))) if server is None else not found["missing"]
    for figure in found["figures"]:
        assert figure.keys() == {"text", "unit", "goal", "reached", "measured"}
        if peers_there:
            assert figure["measured"].keys() == SUMMARY, figure["text"]
    assert bool(found["missing"]) != peers_there or name not in PEERS
    assert report.scenario(found)
    assert not list(tmp_path.iterdir()), "queues are left behind"


def test_contenders_take_turns_and_a_ratio_is_formed_in_each_round(tmp_path: Path) -> None:
    found = run_scenario(lambda sizes, root: toy(1.0, 3.0), TINY, str(tmp_path))

    ratio, missed, information, absent = found["figures"]
    assert (ratio["measured"]["least"], ratio["measured"]["greatest"]) == (2.0, 6.0)
    assert ratio["measured"]["median"] == 4.0  # not 6 / 2, the ratio of the medians
    assert ratio["reached"] is True
    assert missed["reached"] is False
    assert information["reached"] is None
    assert absent["measured"] is None


def test_the_report_names_every_promise_and_what_became_of_it(tmp_path: Path) -> None:
    found = run_scenario(lambda sizes, root: toy(1.0, 3.0), TINY, str(tmp_path))

    text = report.scenario(found)
    assert "at least 2 x" in text
    assert "reached" in text
    assert "NOT REACHED" in text
    assert "not measured" in text
    assert report.missed({"toy": found}) == [
        "toy: fast / slow: at most 0.1 x",
        "toy: of an absent one: at least 1 x",
    ]


def test_the_text_that_the_documentation_shows_is_that_of_the_stored_numbers() -> None:
    results = sorted((PROJECT / "benchmarks" / "results").glob("*-*.json"))
    assert results
    for stored in results:
        result = json.loads(stored.read_text("utf-8"))
        assert stored.with_suffix(".txt").read_text("utf-8") == report.summary(result)


def test_the_summary_has_the_median_and_the_spread() -> None:
    assert Summary.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(3.0, 2.0, 4.0, 1.0, 5.0)
    assert Summary.of([2.0]) == Summary(2.0, 2.0, 2.0, 2.0, 2.0)


@pytest.mark.parametrize(("check", "status"), [([], 0), (["--check"], 1)])
def test_the_command_stores_its_numbers_and_fails_only_when_asked_to(
    check: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.runner.SCENARIOS", {"toy": lambda sizes, root: toy(1.0)})
    monkeypatch.setattr(command, "SCENARIOS", {"toy": None})
    queues, output = tmp_path / "queues", tmp_path / "results"
    queues.mkdir()

    arguments = ["--quick", "--rounds", "1", "--directory", str(queues), "--output", str(output)]
    assert command.main([*arguments, *check]) == status

    stored, shown = sorted(output.iterdir())
    text = stored.read_text("utf-8")
    result = json.loads(text)
    assert result["scenarios"].keys() == {"toy"}
    assert shown.read_text("utf-8") == report.summary(result)
    assert str(tmp_path) not in text
    assert "2 promises not reached or not measured" in capsys.readouterr().out


def test_a_part_of_the_run_replaces_no_stored_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.runner.SCENARIOS", {"toy": lambda sizes, root: toy(1.0)})
    monkeypatch.setattr(command, "SCENARIOS", {"toy": None})
    results = tmp_path / "results"
    monkeypatch.setattr(command, "_RESULTS", results)
    queues = tmp_path / "queues"
    queues.mkdir()

    assert command.main(["--only", "toy", "--rounds", "1", "--directory", str(queues)]) == 0

    assert not results.exists()
    assert "stored in" not in capsys.readouterr().out
