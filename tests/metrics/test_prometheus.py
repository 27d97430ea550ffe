"""The text for Prometheus, as the parser of its official client reads it."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll import (
    EventKind,
    Log,
    MessageQueue,
    PDict,
    PriorityQueue,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
)
from persistcoll.metrics import CONTENT_TYPE, EventCounter, log_events, prometheus_text
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import waiting
from tests.sql.test_costs import Meter
from tests.sql.test_syncs import Syncs

pytestmark = pytest.mark.needs("import:prometheus_client")

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parsed(text: str) -> Samples:
    """Return the samples by their names and sorted labels, and check the form of the text."""
    from prometheus_client.parser import text_string_to_metric_families

    assert text.encode().endswith(b"\n")
    found: Samples = {}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a metric is in two places"
    for family in families:
        assert family.documentation
        assert family.type in ("gauge", "counter")
        for sample in family.samples:
            assert sample.name == family.name + ("_total" if family.type == "counter" else "")
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "a sample is there twice"
            found[sample.name][labels] = sample.value
    return found


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    """Return the value of the one sample with these labels, and perhaps others."""
    (found,) = (
        value
        for its, value in samples[f"persistcoll_{metric}"].items()
        if labels.items() <= dict(its).items()
    )
    return found


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def jobs(opened, tmp_path) -> MessageQueue[Any]:
    jobs: MessageQueue[Any] = opened.enter_context(MessageQueue(tmp_path / "m.db", "jobs", backoff=None))
    return jobs


def test_a_message_queue(jobs, tmp_path):
    jobs.put_many(["a", "b"], topic="t")
    jobs.put("c", delay=900)
    jobs.put("d", ttl=1e-6)
    jobs.get("t").fail("no")
    samples = parsed(prometheus_text(jobs))
    its = {"path": str(tmp_path / "m.db"), "name": "jobs"}
    counts = {state: value(samples, "items", state=state, **its) for state in ("ready", "delayed", "dead")}
    assert counts == {"ready": 1, "delayed": 1, "dead": 1}
    assert value(samples, "items", state="claimed", **its) == 0
    assert value(samples, "topic_items", state="ready", topic="t", **its) == 1
    assert value(samples, "topic_items", state="delayed", topic="default", **its) == 1
    assert 0 < value(samples, "oldest_age_seconds", **its) < 100
    assert 0 < value(samples, "topic_oldest_age_seconds", topic="t", **its) < 100
    assert value(samples, "topic_oldest_age_seconds", topic="default", **its) == 0
    assert value(samples, "puts_total", **its) == 4
    assert value(samples, "expired_total", **its) == 1
    assert value(samples, "topics", **its) == 2
    assert value(samples, "store_bytes", path=its["path"]) == jobs.stats().bytes
    assert value(samples, "up", **its) == 1
    assert "persistcoll_events_total" not in samples
    # A redrive takes it back, so it is no counter.
    assert "persistcoll_gets_total" not in samples


@pytest.mark.parametrize("kind", [Queue, SQLiteQueue, PriorityQueue, SQLiteAckQueue])
def test_a_queue(kind, tmp_path, opened):
    queue = opened.enter_context(kind(tmp_path / "q"))
    for number in range(4):
        queue.put(number)
    queue.get()
    queue.task_done()
    queue.get()
    samples = parsed(prometheus_text(queue))
    stats = queue.stats()
    assert [value(samples, "items", state=state) for state in ("ready", "claimed")] == [
        stats.ready,
        stats.claimed,
    ]
    assert value(samples, "puts_total") == 4
    assert value(samples, "gets_total") == stats.gets >= 1
    assert value(samples, "oldest_age_seconds") > 0
    assert value(samples, "store_bytes") == stats.bytes
    path = str(tmp_path / "q") if kind is Queue else str(tmp_path / "q" / "data.db")
    assert {dict(its)["path"] for each in samples.values() for its in each} == {path}


def test_a_dict_and_a_log(tmp_path, opened):
    ages = opened.enter_context(PDict[str, int](tmp_path / "d.db", "ages"))
    ages.update(ann=1, bob=2)
    log = opened.enter_context(Log[str](tmp_path / "log"))
    log.extend("abc")
    with log.consumer("mailer") as consumer:
        consumer.get()
        consumer.commit()
    log.trim(2)
    samples = parsed(prometheus_text(ages, log))
    assert value(samples, "pairs", name="ages") == 2
    assert value(samples, "log_items", path=str(tmp_path / "log")) == len(log)
    assert value(samples, "puts_total") == 3
    assert value(samples, "consumer_lag", consumer="mailer") == 2
    assert value(samples, "up", path=str(tmp_path / "log")) == 1


def test_each_collection_is_told_once(jobs, opened, tmp_path):
    other = opened.enter_context(MessageQueue(tmp_path / "m.db", "jobs"))
    mails = opened.enter_context(SQLiteQueue(tmp_path / "m.db", "mails"))
    samples = parsed(prometheus_text(jobs, other, jobs, mails))
    assert len(samples["persistcoll_up"]) == 2
    assert len(samples["persistcoll_store_bytes"]) == 1


NASTY = ['"', "\\", "\n", '\\"\\n', "a,b=}{", "#", " ", "\t\r", "é\u2028\U0001f600", 'x"} 1\ny{a="', ""]


@pytest.mark.parametrize("name", NASTY)
def test_any_name_of_a_topic_and_of_a_collection(name, tmp_path, opened):
    jobs = opened.enter_context(MessageQueue(tmp_path / "m.db", name or "empty"))
    jobs.put("a", topic=name)
    samples = parsed(prometheus_text(jobs))
    assert value(samples, "topic_items", topic=name, name=name or "empty", state="ready") == 1


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_any_text(topic):
    with MessageQueue[str](":memory:") as jobs:
        jobs.put("a", topic=topic)
        assert value(parsed(prometheus_text(jobs)), "topic_items", topic=topic, state="ready") == 1


def test_a_path_that_is_no_text(tmp_path, opened):
    path = os.fsencode(tmp_path) + b'/\xff"\n\\'
    queue = opened.enter_context(Queue(os.fsdecode(path)))
    samples = parsed(prometheus_text(queue))
    assert value(samples, "up", path=str(tmp_path) + '/\\udcff"\n\\') == 1


# What cannot be told.


def test_a_closed_container(jobs, opened, tmp_path, caplog):
    jobs.put("a", topic="t")
    closed = SQLiteQueue[Any](tmp_path / "m.db", "mails")
    closed.close()
    samples = parsed(prometheus_text(closed, jobs))
    assert value(samples, "up", name="mails") == 0
    assert value(samples, "up", name="jobs") == 1
    assert value(samples, "items", name="jobs", state="ready") == 1
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("persistcoll", "WARNING")
    assert "'mails' in" in record.getMessage()
    assert "is closed" in record.getMessage()


def test_what_fails_half_way_is_not_told_in_part(jobs, monkeypatch, caplog):
    jobs.put_many(["a"], topic="t")
    jobs.put_many(["a"], topic="u")
    stats = jobs._store.stats

    def fail(topic: str | None = None) -> Any:
        if topic == "u":
            jobs.close()
        return stats(topic)

    monkeypatch.setattr(jobs._store, "stats", fail)
    samples = parsed(prometheus_text(jobs))
    assert [*samples] == ["persistcoll_up"]
    assert value(samples, "up") == 0
    assert len(caplog.records) == 1


def test_what_it_refuses(jobs):
    with pytest.raises(TypeError, match="takes containers, and not str"):
        prometheus_text("jobs")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_topics"):
        prometheus_text(jobs, max_topics="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_topics"):
        prometheus_text(jobs, max_topics=-1)
    assert prometheus_text() == ""
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


# What it costs, and whom it keeps waiting.


def test_many_topics(jobs):
    for number in range(1000):
        jobs.put("a", topic=f"topic {number:04}", delay=900 * (number % 2))
    for most, told in ((0, 0), (7, 7), (100, 100), (2000, 1000)):
        samples = parsed(prometheus_text(jobs, max_topics=most))
        topics = {dict(its)["topic"] for its in samples.get("persistcoll_topic_items", {})}
        assert topics == {f"topic {number:04}" for number in range(told)}
        assert value(samples, "topics") == 1000
        assert value(samples, "items", state="ready") == 500


def test_its_statements_and_that_it_writes_nothing(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    with MessageQueue[str](tmp_path / "m.db", durability="power") as jobs:
        for topic in "abcdef":
            jobs.put("x", topic=topic)
        database: Any = jobs._store._database  # type: ignore[attr-defined]
        syncs = Syncs(database, monkeypatch)
        before = database._connection.total_changes
        costs: list[int] = []
        for most in (0, 2, 4):
            meter.statements.clear()
            prometheus_text(jobs, max_topics=most)
            assert {text.split()[0] for text in meter.statements} == {"BEGIN", "SELECT", "WITH", "ROLLBACK"}
            costs.append(len(meter.statements))
        assert costs[2] - costs[1] == costs[1] - costs[0] <= 2 * 6  # for 2 topics
        assert (syncs.count, database._connection.total_changes) == (0, before)


def test_it_waits_for_no_transaction(jobs):
    jobs.put("a", topic="t")
    with jobs.transaction():
        jobs.put("b", topic="t")
        samples = parsed(waiting(lambda: prometheus_text(jobs))())
        assert value(samples, "topic_items", topic="t", state="ready") == 1


def test_a_scrape_that_stands_still_keeps_no_writer_waiting(jobs, monkeypatch):
    jobs.put_many(["a"], topic="t")
    inside, go_on = threading.Event(), threading.Event()
    stats = jobs._store.stats

    def slow(topic: str | None = None) -> Any:
        found = stats(topic)
        if topic == "t":
            inside.set()
            assert go_on.wait(10)
        return found

    monkeypatch.setattr(jobs._store, "stats", slow)
    finish = waiting(lambda: prometheus_text(jobs))
    assert inside.wait(10)
    for _ in range(3):
        waiting(lambda: jobs.put("b", topic="u"))()
        waiting(lambda: jobs.get("u").ack())()
    go_on.set()
    assert value(parsed(finish()), "topic_items", topic="t", state="ready") == 1


def test_through_an_object_that_only_reads(jobs, opened, tmp_path):
    jobs.put("a", topic="t")
    looking = opened.enter_context(MessageQueue(tmp_path / "m.db", "jobs", read_only=True))
    assert value(parsed(prometheus_text(looking)), "topic_items", topic="t", state="ready") == 1


# The counter of events.


def test_the_counts_of_events(tmp_path):
    counter = EventCounter()
    with MessageQueue[str](tmp_path / "m.db", events=counter) as jobs:
        jobs.put_many("abc")
        jobs.get().ack()
        jobs.purge()
        samples = parsed(prometheus_text(jobs))
        counts = {kind: value(samples, "events_total", kind=kind.value) for kind in EventKind}
    assert counts == counter.counts()
    assert {kind.value: count for kind, count in counts.items() if count} == {
        "put": 3, "claimed": 1, "acked": 1, "purged": 2,
    }  # fmt: skip


def test_threads_count_together(tmp_path):
    counter = EventCounter()
    with MessageQueue[int](tmp_path / "m.db", events=counter, durability="process") as jobs:
        run_threads(*[lambda: [jobs.put(number) for number in range(50)]] * 4)
    assert counter.counts()[EventKind.PUT] == 200


def test_what_is_called_as_well(tmp_path):
    seen: list[EventKind] = []
    counter = EventCounter(lambda event: seen.append(event.kind))
    with MessageQueue[int](tmp_path / "m.db", events=counter) as jobs:
        jobs.put(1)
    assert seen == [EventKind.PUT]
    assert counter.counts()[EventKind.PUT] == 1


def test_another_process_begins_at_0(tmp_path):
    jobs: Any
    with MessageQueue[int](tmp_path / "m.db", events=EventCounter(log_events())) as jobs:
        jobs.put(1)
        with pickle.loads(pickle.dumps(jobs)) as other:
            assert other.events.counts()[EventKind.PUT] == 0
            other.put(2)
            assert other.events.counts()[EventKind.PUT] == 1

        def child() -> None:
            jobs.put_many([3, 4])
            assert jobs.events.counts()[EventKind.PUT] == 2

        in_forked_child(child)
        assert jobs.events.counts()[EventKind.PUT] == 1
