"""Tests of the tests: the explorer catches a log that breaks one of its rules."""

from __future__ import annotations

import os
from typing import Any

import pytest

from persistcoll.journal.cursors import CursorReader
from persistcoll.journal.log_store import _IdsAfterPowerCuts
from persistcoll.testing.faults import CrashDisk, Exploration, Model, explore
from tests.crash.accounts import memory_directory
from tests.crash.log_accounts import LogScribe, opened
from tests.crash.test_log_explorer import check, quick
from tests.crash.test_power_explorer import MODELS
from tests.crash.unsynced_disk import UnsyncedDisk

__all__ = ["quick"]  # the fixture

pytestmark = pytest.mark.long


def work(scribe: LogScribe) -> None:
    """Fill three chunks, consume them with two consumers, go back, and trim."""
    scribe.append(5)
    scribe.consumer("a")
    scribe.consumer("b")
    scribe.take("a", 4)
    scribe.take("b", 3)
    scribe.seek("b", 3)
    scribe.trim(4)
    scribe.take("b", 3)
    scribe.append()


def explored(model: Model, durability: Any = "power", **lie: Any) -> tuple[Exploration, int]:
    disks: list[UnsyncedDisk] = []

    def workload(disk: CrashDisk) -> None:
        disk.mark(durability)
        disks.append(UnsyncedDisk(disk, **lie))
        path = os.path.join(disk.directory, "deep", "log")
        scribe = LogScribe(opened(path, disks[0], chunksize=2, durability=durability), disk.mark)
        work(scribe)
        scribe.close()

    return explore(workload, check, model, memory_directory(), limit=4), disks[0].omissions


LIES: dict[str, tuple[dict[str, Any], tuple[Model, ...]]] = {
    "an item is not synced before append returns": ({"sync": "q?????"}, MODELS),
    "the name of a new chunk is not synced": ({"names_of": "q?????"}, MODELS),
    "a commit is not synced": ({"sync": "consumer-*.cursor"}, MODELS),
    "a new cursor is renamed unsynced": ({"sync": "consumer-*.cursor.tmp"}, MODELS),
    "the name of a new cursor is not synced": ({"names_of": "consumer-*.cursor"}, MODELS),
    "what is trimmed is renamed unsynced": ({"sync": "trimmed.tmp"}, MODELS),
    "the name of what is trimmed is not synced": ({"names_of": "trimmed"}, MODELS),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", LIES)
def test_a_sync_left_out_is_caught(rule, model):
    lie, caught_by = LIES[rule]
    found, omissions = explored(model, **lie)
    assert omissions
    assert bool(found.violations) == (model in caught_by), str(found)


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
def test_the_same_work_with_all_rules_kept(model, durability):
    found, _ = explored(model, durability)
    assert not found.violations, str(found)


@pytest.mark.parametrize("model", MODELS)
def test_a_trim_that_relies_on_commits_that_are_not_durable(model, monkeypatch):
    monkeypatch.setattr(CursorReader, "sync", lambda reader: None)
    found, _ = explored(model, "process")
    assert found.violations


@pytest.mark.parametrize("model", MODELS)
def test_positions_that_are_given_twice(model, monkeypatch):
    monkeypatch.setattr(_IdsAfterPowerCuts, "highest_used_id", lambda used, tail, same_boot: 0)
    found, _ = explored(model, "process")
    assert found.violations
