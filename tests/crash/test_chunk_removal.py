"""A chunk goes only when the cursor on the device says a position behind it."""

from __future__ import annotations

import errno

import pytest

from persistcoll import Empty, Queue
from persistcoll.testing.faults import FaultyDisk


def chunks(path):
    return sorted(file.name for file in path.iterdir() if file.name.startswith("q0") and file.suffix == "")


def rest(path):
    """What a new consumer gets; no look says that anything is damaged."""
    items = []
    with Queue(path) as queue:
        assert queue.qsize() == len(list(queue.items()))
        try:
            while True:
                items.append(queue.get(block=False))
        except Empty:
            return items


@pytest.mark.parametrize("call", ["open", "write", "sync", "replace"])
@pytest.mark.parametrize("position_fits", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_chunk_finished_out_of_order_without_a_new_cursor(call, position_fits, number, tmp_path):
    disk = FaultyDisk()
    with Queue(tmp_path / "q", chunksize=3, _disk=disk) as queue:
        queue.put_many(range(1, 4))
        queue.put_many(range(4, 7))
        queue.put_many(range(7, 10))
        for _ in range(5):
            queue.get()
        with queue.receive() as six:
            assert six == 6
        for _ in range(3):
            queue.task_done()
        fault = disk.fail(call, error=number, times="forever", path="cursor.tmp")
        if not position_fits:
            disk.fail("pwrite", at=2, error=number, path="cursor")
        queue.task_done()  # 4: the first chunk is finished
        assert fault.fired
        kept = [] if position_fits else ["q00000"]
        assert chunks(tmp_path / "q") == [*kept, "q00001", "q00002"]
        disk.heal()
    assert rest(tmp_path / "q") == [5, 7, 8, 9]


def test_skipped_item_far_ahead_does_not_lead_back_into_a_chunk_that_is_gone(tmp_path):
    with Queue(tmp_path / "q", chunksize=3, autosave=True) as queue:
        for number in range(1, 13):
            queue.put(number)
        queue.get()
        assert queue.skip(11) == 11
        assert [queue.get() for _ in range(9)] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert rest(tmp_path / "q") == [12]
