"""Run scenarios in interleaved rounds, and summarize their numbers for the report."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.backlog import backlog
from benchmarks.dict_memory import dict_memory
from benchmarks.dict_reads import dict_reads
from benchmarks.dict_threads import dict_threads
from benchmarks.dict_writes import dict_updates, dict_writes
from benchmarks.formats import serializers
from benchmarks.imports import imports
from benchmarks.log_appends import log_appends
from benchmarks.log_backlog import log_backlog
from benchmarks.log_consumers import log_consumers
from benchmarks.log_reads import log_reads
from benchmarks.machine import describe
from benchmarks.messages import messages, messages_backlog, messages_batches, messages_threads
from benchmarks.model import Figure, Numbers, Scenario, Sizes, Summary
from benchmarks.neighbours import neighbours
from benchmarks.power import power
from benchmarks.process import batches, single
from benchmarks.processes import processes
from benchmarks.server_backlog import (
    mysql_backlog,
    mysql_processes,
    postgres_backlog,
    postgres_processes,
)
from benchmarks.server_wakeups import mysql_wakeups, postgres_wakeups
from benchmarks.servers import (
    mysql_batches,
    mysql_bounded,
    mysql_single,
    postgres_batches,
    postgres_bounded,
    postgres_single,
    postgres_threads,
)
from benchmarks.sql_backlog import sql_backlog
from benchmarks.sql_power import sql_power, sql_processes, sql_threads
from benchmarks.sql_process import sql_acknowledged, sql_batches, sql_orders, sql_single
from benchmarks.wakeups import sql_wakeups, wakeups

__all__ = ["FORMAT", "SCENARIOS", "run", "run_scenario"]

FORMAT = 1

SCENARIOS: Mapping[str, Callable[[Sizes, str], Scenario]] = {
    make.__name__: make
    for make in (
        single,
        batches,
        power,
        backlog,
        wakeups,
        serializers,
        imports,
        processes,
        sql_single,
        sql_acknowledged,
        sql_orders,
        sql_batches,
        sql_power,
        sql_threads,
        sql_processes,
        sql_backlog,
        sql_wakeups,
        dict_reads,
        dict_writes,
        dict_updates,
        dict_threads,
        dict_memory,
        log_appends,
        log_reads,
        log_backlog,
        log_consumers,
        neighbours,
        messages,
        messages_batches,
        messages_threads,
        messages_backlog,
        postgres_single,
        postgres_batches,
        postgres_threads,
        postgres_bounded,
        postgres_backlog,
        postgres_processes,
        mysql_single,
        mysql_batches,
        mysql_bounded,
        mysql_backlog,
        mysql_processes,
        postgres_wakeups,
        mysql_wakeups,
    )
}


def run(
    names: Sequence[str],
    sizes: Sizes,
    directory: str,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run these scenarios below ``directory``, and return everything measured, as it is stored.

    :param done: called with each scenario's result.
    :param progress: called with a line that says what is being done.
    """
    result: dict[str, Any] = {
        "format": FORMAT,
        "machine": describe(directory),
        "sizes": dataclasses.asdict(sizes),
        "scenarios": {},
    }
    for name in names:
        found = run_scenario(SCENARIOS[name], sizes, directory, progress)
        result["scenarios"][name] = found
        done(found)
    return result


def run_scenario(
    make: Callable[[Sizes, str], Scenario],
    sizes: Sizes,
    directory: str,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run all rounds of one scenario.

    In each round each contender runs once, in order, in an empty directory of its own.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="persistcoll-bench-", dir=directory) as root:
        scenario = make(sizes, root)
        prepared: Mapping[str, Any] = {}
        rounds = []
        try:
            if scenario.prepare is not None:
                progress(f"{scenario.name}: preparing")
                prepared = scenario.prepare()
            for number in range(1, sizes.rounds + 1):
                progress(f"{scenario.name}: round {number} of {sizes.rounds}")
                rounds.append(_round(scenario, root))
        finally:
            if scenario.finish is not None:
                scenario.finish()
    return {**_summarized(scenario, rounds, prepared), "seconds": round(time.monotonic() - begin, 1)}


def _round(scenario: Scenario, root: str) -> Numbers:
    numbers: dict[str, float] = {}
    for contender in scenario.contenders:
        at = os.path.join(root, "at")
        os.mkdir(at)
        gc.collect()  # The contender must not pay for the garbage of the one before it.
        try:
            for phase, value in contender.measure(at).items():
                numbers[f"{contender.name}: {phase}"] = value
        finally:
            shutil.rmtree(at)
    return numbers


def _summarized(scenario: Scenario, rounds: Sequence[Numbers], prepared: Mapping[str, Any]) -> dict[str, Any]:
    keys = rounds[0].keys()
    return {
        "name": scenario.name,
        "compared": scenario.compared,
        "unit": scenario.unit,
        "contenders": {contender.name: contender.survives for contender in scenario.contenders},
        "missing": list(scenario.missing),
        "prepared": dict(prepared),
        "numbers": {key: _summary([numbers[key] for numbers in rounds]) for key in keys},
        "figures": [_figure(figure, rounds) for figure in scenario.figures],
        "rounds": [{key: round(value, 4) for key, value in numbers.items()} for numbers in rounds],
    }


def _figure(figure: Figure, rounds: Sequence[Numbers]) -> dict[str, Any]:
    found: dict[str, Any] = {"text": figure.text, "unit": figure.unit, "goal": figure.goal, "reached": None}
    try:
        values = [figure.of(numbers) for numbers in rounds]
    # A contender is not installed, or the system does not say a number.
    except KeyError:
        return {**found, "measured": None}
    return {**found, "measured": _summary(values), "reached": figure.reached(Summary.of(values).median)}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in dataclasses.asdict(Summary.of(values)).items()}
