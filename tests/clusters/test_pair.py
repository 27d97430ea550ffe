"""PostgreSQL whose primary fails: a standby takes over, and the clients find it by a URL that names both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from persistcoll import BackendUnavailableError, PDict, PostgresQueue
from tests.clusters.chaos import LENGTHS, WRONG, forget_notes, seconds_of, survive
from tests.clusters.pair import Pair
from tests.queues.waits import waiting
from tests.servers import ack_workers
from tests.servers.crews import Crew
from tests.servers.proxy import Proxy


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def url_of(pair: Pair) -> str:
    return replace(pair.primary.address, hosts=tuple(address.hosts[0] for address in pair.addresses)).shown


def failures(pair: Pair, rng: Any) -> dict[str, tuple[int, Callable[[], float | None]]]:
    return {
        "the primary's end": (4, lambda: pair.fail_over(rng.choice((0.0, 0.0, 0.3)))),
        "the standby's end": (1, pair.restart_standby),
    }


def queue_of(which: str, pair: Pair) -> Any:
    return ack_workers.opened(which, {"url": url_of(pair)})


@pytest.mark.parametrize("at_length", LENGTHS)
@pytest.mark.parametrize("which", ["PostgresAckQueue", "MessageQueue"])
def test_no_failure_of_a_primary_loses_or_doubles_an_item(pair, crew, rng, tell, request, which, at_length):
    started, open_queue = crew(pair.addresses, which), partial(queue_of, which, pair)
    seconds = seconds_of(request.config, at_length, 2)
    rows = survive(started, open_queue, failures(pair, rng), seconds, tell)
    check(started, rows)


def check(crew: Crew, rows: Any) -> None:
    ack_workers.Account(crew.notes).check(rows)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["commits do not wait for the standby", "calls are not noted"])
def test_a_fault_is_noticed(pair, crew, rng, tell, fault):
    open_queue = partial(queue_of, "PostgresAckQueue", pair)
    with open_queue():  # Otherwise its tables may be lost, too.
        started = crew(
            pair.addresses,
            "PostgresAckQueue",
            before=forget_notes if fault == "calls are not noted" else None,
        )
        if started.before is None:
            pair.commit_alone()
        failure = {"the primary's end": (6, lambda: pair.fail_over(0.5))}
        # An item whose ack is undone stays claimed, because its holder lives and believes it acked.
        found = f"{WRONG}|it lasts too long"
        with pytest.raises(AssertionError, match=found):
            check(started, survive(started, open_queue, failure, 10.0, tell, 15.0))


def test_several_hosts_name_the_one_that_may_be_written_to(pair):
    hosts = [address.hosts[0] for address in pair.addresses]
    for each in (hosts, hosts[::-1]):
        url = replace(pair.primary.address, hosts=tuple(each)).shown
        with PDict[str, int](url, "ages") as ages:
            ages["ann"] = 41
    # A reader may ask for any server.
    with PDict[str, int](f"{url}?target_session_attrs=any", "ages") as ages:
        assert dict(ages) == {"ann": 41}
        with pytest.raises(BackendUnavailableError, match="standby"):
            ages["ann"] = 42


def test_what_a_failover_would_undo_is_not_called_done(pair):
    """The note of a put whose answer was lost is on the primary, and not yet on the standby."""
    with PostgresQueue[str]("jobs", url_of(pair), timeout=20) as queue:
        queue.put("first")
        pair.stop_sending()
        put = waiting(lambda: queue.put("second"))
        pair.end_what_waits()
        pair.end_what_waits()  # The question for the note waits as well.
        pair.fail_over()
        put()
        assert queue.get_many(9) == ["first", "second"]


def test_a_get_that_waits_survives_a_failover(pair):
    with (
        PostgresQueue[str]("jobs", url_of(pair), timeout=20) as queue,
        PostgresQueue[str]("jobs", url_of(pair), timeout=19) as other,
    ):
        got = waiting(lambda: queue.get(timeout=60))
        pair.fail_over()
        other.put("x")
        assert got() == "x"


def test_a_host_that_does_not_answer_is_asked_once(pair):
    proxy = Proxy(pair.primary.address)
    proxy.silent = True
    hosts = (*proxy.address.hosts, *pair.primary.address.hosts)
    try:
        with PostgresQueue[int]("jobs", replace(pair.primary.address, hosts=hosts).shown, timeout=4) as queue:
            server: Any = queue._store._server
            sessions = [server.acquire() for _ in range(3)]
            for session in sessions:
                server.release(session)
            queue.put(1)
        assert proxy.accepted == 1
    finally:
        proxy.close()
