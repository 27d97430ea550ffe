"""What once made a log lose, skip or refuse something: each test shows one defect that was mended."""

from __future__ import annotations

import os
import threading

import pytest

from persistcoll import Log, TrimmedError
from persistcoll.engine.log_core import ConsumerCore
from tests.crash.test_fork import fork, succeeded


def _in_another_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def _at_commit(monkeypatch, consumer, before=None, after=None):
    """Make the next commit of the cursor call these functions before and after it."""
    cursor = consumer._core.cursor
    original = cursor.commit

    def commit(*arguments):
        monkeypatch.undo()
        if before is not None:
            before()
        original(*arguments)
        if after is not None:
            after()

    monkeypatch.setattr(cursor, "commit", commit)


def test_a_commit_that_ends_after_a_seek_back_has_no_effect_on_later_ones(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(10)
        _at_commit(monkeypatch, consumer, after=lambda: _in_another_thread(lambda: consumer.seek("first")))
        consumer.commit()
        with consumer.receive() as item:
            assert item == 1
        assert consumer.position == 1


def test_a_commit_does_not_undo_a_seek_that_overtakes_it(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(5)
        _at_commit(monkeypatch, consumer, before=lambda: _in_another_thread(lambda: consumer.seek("first")))
        consumer.commit()
        assert consumer.position == 0
        with consumer.receive() as item:
            assert item == 1
            _at_commit(
                monkeypatch, consumer, before=lambda: _in_another_thread(lambda: consumer.seek("first"))
            )
        assert consumer.position == 0
        assert consumer.get() == 1


def test_an_interrupted_seek_leaves_no_claims_behind(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(5)

        def interrupted(core):
            raise KeyboardInterrupt

        monkeypatch.setattr(ConsumerCore, "_begin", interrupted)
        try:
            consumer.seek("first")
        except KeyboardInterrupt:
            monkeypatch.undo()
        consumer.commit()
        assert consumer.position == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_where_the_consumer_was_closed(tmp_path):
    """What the parent got, claimed and released is nothing to the child."""
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        end, begin = os.pipe()
        consumer.get_many(2)
        receiving = consumer.receive()
        assert receiving.__enter__() == 3

        def child():
            os.close(begin)
            os.read(end, 1)  # until the parent has closed the consumer
            with consumer.receive() as item:
                assert item == 4
            assert consumer.position == 4
            consumer.get()
            consumer.commit()
            assert consumer.position == 5
            log.close()

        pid = fork(child)
        receiving.__exit__(None, None, None)
        consumer.close()
        os.close(begin)
        os.close(end)
        assert succeeded(pid)


def test_a_released_item_that_is_trimmed_is_no_end_of_the_log(tmp_path):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 4))
        consumer = log.consumer("reader")
        with pytest.raises(KeyError), consumer.receive() as item:
            raise KeyError(item)
        log.trim(2, force=True)
        with pytest.raises(TrimmedError):
            consumer.get(block=False)
        with pytest.raises(TrimmedError):
            list(consumer)
        consumer.seek("first")
        assert list(consumer) == [2, 3]
