"""What a network does to a connection in a call: it resets it at any byte, swallows the rest, or is slow.

The call then does what the same call does by a direct connection, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from persistcoll.servers import driver
from tests.servers.subjects import SUBJECTS

ANY = 1 << 30  # bytes; no call has so many
# Bytes of a call that a run tries, and calls; others in each run. With --stress it tries all.
PLACES = {"resets": 3, "stalls": 1}
CALLS_OF_A_RUN = 12
CALLS = [(subject, call) for subject, each in SUBJECTS.items() for call in each.calls]


class Trial:
    """Runs a call of a collection, each time of a new one.

    :param url: where the object connects that is called.
    """

    def __init__(self, place: Any, subject: str, call: str, url: str) -> None:
        self.place, self.subject, self.call, self.url = place, SUBJECTS[subject], call, url
        self.name = f"{subject} {call}"
        self.numbers = itertools.count()

    def __repr__(self) -> str:
        return self.name

    def run(self, disturbed: Callable[[Callable[[], Any]], Any] = lambda call: call()) -> Any:
        """Return what the call leaves, for which ``disturbed`` calls it."""
        subject, name = self.subject, f"{self.name} {next(self.numbers)}"
        direct = self.place.address.shown
        with (
            closing(subject.open(self.place, name, direct, 20)) as other,
            closing(subject.open(self.place, name, self.url, 20)) as tested,
        ):
            have = subject.prepare(tested)
            value = disturbed(lambda: subject.calls[self.call](tested, have))
            if self.call in subject.gets:
                return sorted(subject.bodies(value) + subject.drain(tested))
            return subject.look(other), subject.drain(other if self.call == "close" else tested)


@pytest.fixture
def some(request, rng) -> Callable[[Sequence[Any], int], Sequence[Any]]:
    """Return a function that chooses so many of a sequence, or all with --stress."""
    return lambda found, count: found if request.config.getoption("--stress") else rng.sample(found, count)


@pytest.fixture
def trials(place, proxy, some) -> Callable[[], Iterator[Trial]]:
    """Return a function that gives the trials of some calls."""
    url = replace(place.address, hosts=proxy.address.hosts).shown
    return lambda: (Trial(place, subject, call, url) for subject, call in some(CALLS, CALLS_OF_A_RUN))


@pytest.mark.parametrize("what", ["questions", "answers"])
@pytest.mark.parametrize("how", PLACES)
@pytest.mark.timeout(600)
def test_a_connection_that_fails_in_a_call_undoes_nothing_and_repeats_nothing(
    monkeypatch, trials, proxy, some, how, what
):
    if how == "stalls":
        monkeypatch.setattr(driver, "_SHORTEST_ANSWER_TIMEOUT", 0.3)
        monkeypatch.setattr(driver, "_TIMEOUTS_PER_ANSWER", 0.01)
    left: list[int | None] = []

    def run(trial: Trial, after: int) -> Any:
        def disturbed(call: Callable[[], Any]) -> Any:
            with proxy.failing(how, what, after):
                value = call()
                left.append(proxy.left[what])
            return value

        return trial.run(disturbed)

    for trial in trials():
        wanted = run(trial, ANY)
        size = ANY - (left.pop() or 0)
        assert size > 10, trial
        for place in some(range(size), PLACES[how]):
            assert run(trial, place) == wanted, f"{trial}: it {how} after {place} bytes of {size}"
    # A call whose random numbers have fewer digits, or beside which no heartbeat is sent, is smaller.
    assert left.count(None) >= len(left) / 2


def test_a_call_whose_packets_are_late_does_the_same(trials, proxy):
    def disturbed(call: Callable[[], Any]) -> Any:
        proxy.delay = 0.05
        try:
            return call()
        finally:
            proxy.delay = 0.0

    for trial in trials():
        assert trial.run(disturbed) == trial.run(), trial
