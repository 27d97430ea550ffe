"""Tests of the tests: the explorer catches a journal that breaks one of its rules.

A rule is broken by a disk that omits one kind of sync, or by a consumer that acts in the wrong order. ext4
forgives some of it, because a sync of any file whose metadata changed commits all names. Therefore there is
the strict model.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from persistcoll import Queue
from persistcoll.disk.calls import Disk
from persistcoll.errors import CorruptionError
from persistcoll.journal.chunk_removal import ConsumedChunks
from persistcoll.testing.faults import CrashDisk, CrashState, Exploration, Model, explore
from tests.crash.accounts import Scribe, memory_directory, numbered
from tests.crash.test_power_explorer import MODELS, check, quick
from tests.crash.unsynced_disk import UnsyncedDisk

__all__ = ["quick"]  # the fixture

pytestmark = pytest.mark.long


def work(scribe: Scribe) -> None:
    """Fill three chunks and consume two."""
    scribe.put(3)
    scribe.get()
    scribe.done()
    scribe.put_many(2)
    scribe.get(2)
    scribe.done(2)
    scribe.get()
    scribe.done()
    scribe.put()


def explored(model, **lie: Any) -> tuple[Exploration, int]:
    disks: list[UnsyncedDisk] = []

    def workload(disk: CrashDisk) -> None:
        disk.mark("power")
        disks.append(UnsyncedDisk(disk, **lie))
        path = os.path.join(disk.directory, "deep", "queue")
        with Queue(path, chunksize=2, serializer="raw", _disk=disks[0]) as queue:
            work(Scribe(queue, disk.mark))

    return explore(workload, check, model, memory_directory(), limit=16), disks[0].omissions


LIES: dict[str, tuple[dict[str, Any], tuple[Model, ...]]] = {
    "R1: a chunk is not synced before put returns": ({"sync": "q?????"}, MODELS),
    "R2: the name of a new chunk is not synced": ({"names_of": "q?????"}, MODELS),
    "R3: a new chunk is renamed unsynced": ({"sync": "q?????.tmp"}, MODELS),
    "R3: a new cursor is renamed unsynced": ({"sync": "cursor.tmp"}, MODELS),
    "R3: info is renamed unsynced": ({"sync": "info.tmp"}, MODELS),
    "R4: the rename of the cursor is not synced": ({"names_of": "cursor"}, MODELS),
    "R4: the rename of info is not synced": ({"names_of": "info"}, ("strict", "weak")),
    "R7: an acknowledgement is not synced": ({"sync": "cursor"}, MODELS),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", LIES)
def test_a_sync_left_out_is_caught(rule, model):
    lie, caught_by = LIES[rule]
    found, omissions = explored(model, **lie)
    assert omissions
    assert bool(found.violations) == (model in caught_by), str(found)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_work_with_all_rules_kept(model):
    found, _ = explored(model)
    assert not found.violations, str(found)


@pytest.mark.parametrize("model", MODELS)
def test_r5_a_chunk_removed_before_the_cursor_is_durable(model, monkeypatch):
    rightly = ConsumedChunks.remove

    def too_early(chunks: ConsumedChunks) -> None:
        cursor = chunks._cursor
        # which the cursor on the device does not say yet
        cursor.stated_chunk = cursor.acknowledged.position[0]
        chunks._unlink_consumed()
        rightly(chunks)

    monkeypatch.setattr(ConsumedChunks, "remove", too_early)
    found, _ = explored(model)
    assert found.violations


@pytest.mark.parametrize("rule_kept", [True, False])
def test_r6_a_planted_link_is_not_followed(rule_kept, tmp_path):
    victim, queue = tmp_path / "victim", tmp_path / "queue"
    victim.write_bytes(b"precious")
    disk = Disk() if rule_kept else _following(UnsyncedDisk(Disk()))
    # What was written through the link follows the victim's content, where closing finds no record.
    broken = [] if rule_kept else [CorruptionError]
    with contextlib.suppress(*broken), Queue(queue, serializer="raw", chunksize=1, _disk=disk) as opened:
        opened.put(b"item")
        (queue / "q00001.tmp").symlink_to(victim)
        opened.put(b"item")
    assert (victim.read_bytes() == b"precious") == rule_kept


def _following(disk: UnsyncedDisk) -> UnsyncedDisk:
    """Open without O_EXCL, and without the O_NOFOLLOW that a Disk adds by itself."""

    def follow(path: str, flags: int, mode: int = 0o600) -> int:
        disk.omissions += 1
        fd = os.open(path, flags & ~os.O_EXCL | os.O_CLOEXEC, mode)
        disk._paths[fd] = os.path.basename(path)
        return fd

    disk.open = follow  # type: ignore[method-assign]
    return disk


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule_kept", [True, False])
def test_r6_a_temporary_file_is_begun_anew(rule_kept, model):
    """A cut left half a temporary file. Data appended to it would appear under the final name."""
    flags = 0 if rule_kept else os.O_EXCL

    def check_again(state: CrashState, directory: str) -> None:
        # The recovery itself breaks the rule; the check that follows does not.
        path = os.path.join(directory, "deep", "queue")
        with Queue(path, serializer="raw", chunksize=2, _disk=UnsyncedDisk(Disk(), flags=flags)) as queue:
            queue.put_many([numbered(10**7), numbered(10**7 + 1)])
            queue.put(numbered(10**7 + 2))
        with Queue(path, serializer="raw") as queue:
            assert len(list(queue.items())) == queue.qsize()

    def workload(disk: CrashDisk) -> None:
        path = os.path.join(disk.directory, "deep", "queue")
        with Queue(path, chunksize=2, serializer="raw", _disk=disk) as queue:
            queue.put_many([numbered(1), numbered(2)])
            queue.put(numbered(3))

    found = explore(workload, check_again, model, memory_directory(), limit=12)
    assert bool(found.violations) != rule_kept, str(found)
