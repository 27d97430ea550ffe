"""A log is no queue, and a queue is no log, whatever has happened to the file that says what it is."""

from __future__ import annotations

import os

import pytest

from persistcoll import CorruptionError, Log, Queue, StoreKindError


def test_a_log_is_no_queue_and_a_queue_no_log(tmp_path):
    with Log(tmp_path / "log", durability="process") as log:
        log.append(1)
    with Queue(tmp_path / "queue", durability="process") as queue:
        queue.put(1)
    for name, kind, right in (("log", Queue, Log), ("queue", Log, Queue)):
        for damage in ("none", "damaged", "missing"):
            info = tmp_path / name / "info"
            content = info.read_bytes()
            if damage == "damaged":
                info.write_bytes(content[:20] + b"?" + content[21:])
            elif damage == "missing":
                info.unlink()
            for policy in ("raise", "skip", "stop"):
                with pytest.raises((StoreKindError, CorruptionError)) as caught:
                    kind(tmp_path / name, on_corruption=policy)
                if damage == "none" or policy != "raise":
                    assert isinstance(caught.value, StoreKindError)
            info.write_bytes(content)
            with right(tmp_path / name, durability="process") as opened:
                assert len(opened) == 1


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_a_log_is_no_queue_although_it_has_lost_two_files(open_log, tmp_path, damage):
    """Without ``info`` and ``trimmed`` its consumers tell that the store is a log."""
    log = open_log()
    log.extend(range(3))
    log.consumer("c").close()
    log.close()
    info, trimmed = tmp_path / "log" / "info", tmp_path / "log" / "trimmed"
    if damage == "damaged":
        info.write_bytes(b"{}")
    else:
        info.unlink()
    trimmed.unlink()
    before = sorted(os.listdir(tmp_path / "log"))
    with pytest.raises(StoreKindError):
        Queue(tmp_path / "log", on_corruption="skip")
    assert sorted(os.listdir(tmp_path / "log")) == before
    assert list(open_log(on_corruption="skip")) == [0, 1, 2]
