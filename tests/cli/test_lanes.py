"""How many lines each consumer gets, and when the demo kills it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.cli.demo_lanes import Lane, kill_points


def test_kills_are_spread_over_the_run():
    points = kill_points(1_000_000, 5, seed=3)
    assert [point // 200_001 for point, _ in points] == [0, 1, 2, 3, 4]
    assert points == kill_points(1_000_000, 5, seed=3)
    assert points != kill_points(1_000_000, 5, seed=4)


@pytest.mark.parametrize(
    ("lines", "kills"), [(1, 1), (1, 5), (7, 5), (100, 100), (99, 100), (50_000, 3), (5, 0)]
)
def test_every_kill_meets_a_consumer_that_got_something(lines, kills):
    for seed in range(20):
        points = kill_points(lines, kills, seed)
        assert len(points) == min(lines, kills)
        held = 0
        for point, hold in points:
            # Each consumer gets at least one line more than its predecessor had before its kill.
            assert held < point <= hold <= lines
            held = hold


def test_one_consumer_is_killed_at_all_of_the_points():
    (lane,) = Lane.plan(1000, 3, 1, seed=7)
    seen = []
    for point, hold in kill_points(1000, 3, seed=7):
        assert lane.limit(kills_are_done=False) == hold - lane.deliveries
        for deliveries in (point - 1, point):
            lane.deliveries = deliveries
            seen.append((lane.doomed, lane.due))
        lane.kills += 1
    assert seen == [(True, False), (True, True)] * 3
    assert (lane.doomed, lane.due) == (False, False)
    assert lane.limit(kills_are_done=True) is None


def test_several_are_killed_in_turn():
    lanes = Lane.plan(10_001, 5, 2, seed=0)
    assert [lane.limit(kills_are_done=False) is not None for lane in lanes] == [True, True]
    kills = []
    for lane in lanes:
        while lane.doomed:
            lane.deliveries += lane.limit(kills_are_done=False) or 0
            assert lane.due
            lane.kills += 1
        kills.append(lane.kills)
    assert kills == [3, 2]
    # Before the kills are done, a consumer gets no more lines than there are.
    assert [lane.deliveries + (lane.limit(kills_are_done=False) or 0) for lane in lanes] == [5001, 5000]


def test_a_consumer_that_gets_nothing_is_spared():
    (lane,) = Lane.plan(10, 2, 1, seed=0)
    lane.spare()
    assert not lane.doomed
    assert lane.limit(kills_are_done=True) is None


class Model:
    """Consumers that get lines in turns that chance decides."""

    def __init__(self, lanes: list[Lane], lines: int) -> None:
        self.lanes = lanes
        self.ready = lines
        self.hands = [0] * len(lanes)
        self.limits: list[int | None] = [0] * len(lanes)
        self.waits = [False] * len(lanes)
        self.acknowledged = 0
        for lane in lanes:
            self.start(lane)

    def start(self, lane: Lane) -> None:
        self.limits[lane.number] = lane.limit(kills_are_done=not any(lane.doomed for lane in self.lanes))
        self.waits[lane.number] = self.limits[lane.number] == 0

    def able(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.due or (self.ready and not self.waits[lane.number])]

    def take(self, lane: Lane, number: int) -> None:
        limit = self.limits[lane.number]
        taken = min(number, self.ready, *([] if limit is None else [limit]))
        self.ready -= taken
        lane.deliveries += taken
        if limit is not None:
            limit = self.limits[lane.number] = limit - taken
            self.waits[lane.number] = limit == 0
        if limit == 0 and lane.doomed:
            self.hands[lane.number] = taken
        else:
            self.acknowledged += taken

    def kill(self, lane: Lane) -> None:
        lane.kills += 1
        self.ready += self.hands[lane.number]
        self.hands[lane.number] = 0
        self.start(lane)
        if not any(lane.doomed for lane in self.lanes):
            self.waits = [False] * len(self.lanes)
            self.limits = [None] * len(self.lanes)


@given(st.integers(1, 40), st.integers(0, 12), st.integers(1, 3), st.integers(0, 1000), st.data())
def test_every_kill_comes_and_every_line_is_done(lines, kills, consumers, seed, data):
    lanes = Lane.plan(lines, kills, consumers, seed)
    planned = sum(
        min(len(range(n, kills, consumers)), len(range(n, lines, consumers))) for n in range(consumers)
    )
    model = Model(lanes, lines)
    while able := model.able():
        lane = data.draw(st.sampled_from(able))
        if lane.due and (model.waits[lane.number] or not model.ready or data.draw(st.booleans())):
            model.kill(lane)
        else:
            model.take(lane, data.draw(st.integers(1, 10)))
    assert model.acknowledged == lines
    assert sum(lane.kills for lane in lanes) == planned
