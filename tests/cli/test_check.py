"""The demo's account: what it accepts, and that nothing else passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistcoll.cli.demo.lines import PRODUCERS, Check

LINES = [b"line %d\n" % number for number in range(12)]
DELIVERIES = list(enumerate(LINES))


def new_check(consumers: int = 1) -> Check:
    return Check([hash(line) for line in LINES], consumers)


def receive(check: Check, delivery, consumer: int = 0) -> bool:
    """Give the check one delivery; whether it is one that may come again."""
    again = check.again
    check.receive([delivery], consumer)
    return check.again > again


def checked(deliveries) -> Check:
    check = new_check()
    for delivery in deliveries:
        receive(check, delivery)
    return check


def problems_of(check: Check) -> list[str]:
    return [f"{name}: {number}" for name, number in check.faults.items() if number]


def problems(deliveries):
    return problems_of(checked(deliveries))


def test_what_went_in_comes_out():
    check = checked(DELIVERIES)
    assert problems_of(check) == []
    assert (check.deliveries, check.lines_out, check.faults["lost"], check.again) == (12, 12, 0, 0)


@given(st.data())
def test_producers_may_be_interleaved_in_any_way(data):
    waiting = [DELIVERIES[producer::PRODUCERS] for producer in range(PRODUCERS)]
    check = new_check()
    while any(waiting):
        producer = data.draw(st.sampled_from([p for p in range(PRODUCERS) if waiting[p]]))
        receive(check, waiting[producer].pop(0))
    assert problems_of(check) == []


@given(st.lists(st.sampled_from(range(len(LINES))), unique=True))
def test_the_line_in_a_killed_consumers_hands_may_come_again(killed_at):
    check = new_check()
    for delivery in DELIVERIES:
        assert not receive(check, delivery)
        if delivery[0] in killed_at:
            check.killed()
            assert receive(check, delivery)
    assert check.again == check.in_hand == len(killed_at)
    assert problems_of(check) == []


def test_a_line_may_come_to_several_consumers_that_are_killed_with_it():
    check = new_check()
    for delivery in DELIVERIES:
        receive(check, delivery)
        if delivery[0] == 5:
            for _ in range(3):
                check.killed()
                assert receive(check, delivery)
    assert problems_of(check) == []


def test_a_lost_line():
    for lost in range(len(LINES)):
        check = checked(DELIVERIES[:lost] + DELIVERIES[lost + 1 :])
        assert check.faults["lost"] == 1
        assert problems_of(check) == ["lost: 1"]


def test_all_lines_lost():
    assert problems([]) == ["lost: 12"]


def test_an_altered_line():
    for altered in range(len(LINES)):
        number, line = DELIVERIES[altered]
        deliveries = list(DELIVERIES)
        deliveries[altered] = (number, line.upper())
        assert problems(deliveries) == ["the content is not what was put: 1"]


def test_a_line_end_that_moved():
    deliveries = list(DELIVERIES)
    deliveries[0], deliveries[2] = (0, b"line"), (2, b" 0\nline 2\n")
    assert problems(deliveries) == ["the content is not what was put: 2"]


def test_a_line_that_comes_late():
    deliveries = [*DELIVERIES[:2], *DELIVERIES[3:5], DELIVERIES[2], *DELIVERIES[5:]]
    assert problems(deliveries) == ["out of order: 1"]


def test_a_line_again_without_a_kill():
    deliveries = [*DELIVERIES[:5], DELIVERIES[4], *DELIVERIES[5:]]
    assert problems(deliveries) == ["delivered again after they were acknowledged: 1"]


def test_an_acknowledged_line_again_after_a_kill():
    check = new_check()
    for delivery in DELIVERIES[:5]:
        receive(check, delivery)
    check.killed()
    for delivery in DELIVERIES[3:]:
        receive(check, delivery)
    assert problems_of(check) == ["delivered again after they were acknowledged: 1"]


def test_a_line_again_with_other_content():
    check = new_check()
    receive(check, DELIVERIES[0])
    check.killed()
    assert not receive(check, (0, b"LINE 0\n"))
    for delivery in DELIVERIES[1:]:
        receive(check, delivery)
    assert problems_of(check) == ["delivered again after they were acknowledged: 1"]


def test_lines_that_nobody_put():
    for stranger in ((12, b"too far"), (-2, b"")):
        assert problems([*DELIVERIES, stranger]) == ["delivered and never put: 1"]


# A consumer that holds several lines.


@given(st.integers(0, 4), st.integers(0, 4))
def test_all_or_the_last_of_a_killed_consumers_hand_may_come_again(acknowledged, together):
    check = new_check()
    check.receive(DELIVERIES[:4])
    check.receive(DELIVERIES[4:8])
    check.killed()
    again = DELIVERIES[4 + acknowledged : 8]
    deliveries = [*again, *DELIVERIES[8:]]
    check.receive(deliveries[:together])
    assert check.again == min(together, len(again))
    check.receive(deliveries[together:])
    assert problems_of(check) == []
    assert (check.again, check.in_hand) == (len(again), 4)


def test_what_was_acknowledged_with_an_earlier_hand_may_not():
    check = new_check()
    check.receive(DELIVERIES[:4])
    check.receive(DELIVERIES[4:8])
    check.killed()
    check.receive(DELIVERIES[3:])
    assert problems_of(check) == ["delivered again after they were acknowledged: 1"]
    assert check.again == 4


def test_nothing_comes_again_after_a_new_line():
    check = new_check()
    check.receive(DELIVERIES[:4])
    check.killed()
    check.receive([*DELIVERIES[1:5], *DELIVERIES[:1], *DELIVERIES[5:]])
    assert problems_of(check) == ["delivered again after they were acknowledged: 1"]


def test_it_may_come_again_once():
    check = new_check()
    check.receive(DELIVERIES[:4])
    check.killed()
    check.receive([*DELIVERIES[:4], *DELIVERIES[:2], *DELIVERIES[4:]])
    assert problems_of(check) == ["delivered again after they were acknowledged: 2"]


# Several consumers.


@given(st.data())
def test_lines_may_be_shared_out_in_any_way(data):
    check = new_check(consumers=3)
    got: list[list] = [[], [], []]
    for delivery in DELIVERIES:
        got[data.draw(st.integers(0, 2))].append(delivery)
    while any(got):
        consumer = data.draw(st.sampled_from([number for number, lines in enumerate(got) if lines]))
        receive(check, got[consumer].pop(0), consumer)
    assert problems_of(check) == []
    assert check.lines_out == 12


def test_each_consumer_gets_a_producers_lines_in_order():
    check = new_check(consumers=2)
    for consumer, number in ((0, 4), (1, 0), (0, 2), (1, 6)):
        receive(check, DELIVERIES[number], consumer)
    assert check.faults["out of order"] == 1


@pytest.mark.parametrize("consumer", [0, 1])
def test_the_hand_of_a_killed_consumer_comes_to_any_consumer_later(consumer):
    check = new_check(consumers=2)
    check.receive(DELIVERIES[:2], 0)
    check.receive(DELIVERIES[2:6], 1)
    check.killed(0)
    check.receive(DELIVERIES[6:8], 1)
    check.receive([*DELIVERIES[:2], *DELIVERIES[8:]], consumer)
    assert problems_of(check) == []
    assert (check.again, check.in_hand) == (2, 2)


def test_a_line_comes_to_two_consumers():
    check = new_check(consumers=2)
    for consumer, number in ((0, 0), (1, 1), (0, 2), (1, 2)):
        receive(check, DELIVERIES[number], consumer)
    assert check.faults["delivered again after they were acknowledged"] == 1


def test_a_line_comes_to_two_consumers_after_a_kill():
    check = new_check(consumers=2)
    check.receive(DELIVERIES[:3], 0)
    check.killed(0)
    for consumer in (0, 1):
        check.receive(DELIVERIES[:3], consumer)
    assert check.again == 3
    assert check.faults["delivered again after they were acknowledged"] == 3
