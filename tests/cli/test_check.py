"""The demo's count of its promises: what it accepts, and that it accepts nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persistcoll.cli.demo_check import Check
from persistcoll.cli.demo_source import PRODUCERS, Digest, Sent

LINES = [b"line %d\n" % number for number in range(12)]
DELIVERIES = [(number % PRODUCERS, number, line) for number, line in enumerate(LINES)]


def new_check(consumers: int = 1, hand: int = 1) -> Check:
    sent = []
    for producer in range(PRODUCERS):
        digest = Digest()
        for line in LINES[producer::PRODUCERS]:
            digest.add(line)
        sent.append(Sent(digest.lines, digest.hexdigest()))
    return Check(sent, consumers, hand)


def checked(deliveries) -> Check:
    check = new_check()
    for delivery in deliveries:
        check.receive(delivery)
    return check


def problems(deliveries):
    return checked(deliveries).problems


def test_what_went_in_comes_out():
    check = checked(DELIVERIES)
    assert check.problems == []
    assert (check.lines_in, check.lines_out, check.lost, check.again) == (12, 12, 0, 0)
    assert check.same_content


@given(st.data())
def test_producers_may_be_interleaved_in_any_way(data):
    waiting = [DELIVERIES[producer::PRODUCERS] for producer in range(PRODUCERS)]
    check = new_check()
    while any(waiting):
        producer = data.draw(st.sampled_from([p for p in range(PRODUCERS) if waiting[p]]))
        check.receive(waiting[producer].pop(0))
    assert check.problems == []


@given(st.lists(st.sampled_from(range(len(LINES))), unique=True))
def test_the_line_that_a_killed_consumer_claimed_may_come_again(killed_at):
    check = new_check()
    for delivery in DELIVERIES:
        assert not check.receive(delivery)
        if delivery[1] in killed_at:
            check.killed()
            assert check.receive(delivery)
    assert check.again == check.in_hand == len(killed_at)
    assert check.problems == []


def test_a_line_may_come_to_several_consumers_that_are_killed_with_it():
    check = new_check()
    for delivery in DELIVERIES:
        check.receive(delivery)
        if delivery[1] == 5:
            for _ in range(3):
                check.killed()
                assert check.receive(delivery)
    assert check.problems == []


def test_a_lost_line():
    for lost in range(len(LINES)):
        check = checked(DELIVERIES[:lost] + DELIVERIES[lost + 1 :])
        assert check.lost == 1
        assert check.problems == ["lost: 1"]


def test_all_lines_lost():
    assert problems([]) == ["lost: 12"]


def test_an_altered_line():
    for altered in range(len(LINES)):
        producer, number, line = DELIVERIES[altered]
        deliveries = list(DELIVERIES)
        deliveries[altered] = (producer, number, line.upper())
        assert problems(deliveries) == ["the content is not what was put"]


def test_a_line_end_that_moved():
    deliveries = list(DELIVERIES)
    deliveries[0], deliveries[2] = (0, 0, b"line"), (0, 2, b" 0\nline 2\n")
    assert problems(deliveries) == ["the content is not what was put"]


def test_a_line_that_comes_late():
    deliveries = [*DELIVERIES[:2], *DELIVERIES[3:5], DELIVERIES[2], *DELIVERIES[5:]]
    assert problems(deliveries) == ["out of order: 1"]


def test_a_line_again_without_a_kill():
    deliveries = [*DELIVERIES[:5], DELIVERIES[4], *DELIVERIES[5:]]
    assert problems(deliveries) == ["delivered again after they were acknowledged: 1"]


def test_an_acknowledged_line_again_after_a_kill():
    check = new_check()
    for delivery in DELIVERIES[:5]:
        check.receive(delivery)
    check.killed()
    for delivery in DELIVERIES[3:]:
        check.receive(delivery)
    assert check.problems == ["delivered again after they were acknowledged: 1"]


def test_a_line_again_with_other_content():
    check = new_check()
    check.receive(DELIVERIES[0])
    check.killed()
    assert not check.receive((0, 0, b"LINE 0\n"))
    for delivery in DELIVERIES[1:]:
        check.receive(delivery)
    assert check.problems == ["delivered again after they were acknowledged: 1"]


def test_lines_that_no_producer_put():
    strangers = [
        (0, 12, b"too far"),
        (0, 1, b"not this producer's"),
        (7, 7, b"no such producer"),
        (0, -2, b""),
    ]
    for stranger in strangers:
        assert problems([*DELIVERIES, stranger]) == ["delivered and never put: 1"]


# Several lines in flight.


def receive_together(check: Check, deliveries, consumer=0) -> list[bool]:
    return [check.receive(delivery, consumer, first=not index) for index, delivery in enumerate(deliveries)]


@given(st.integers(0, 4), st.integers(0, 4))
def test_all_or_the_last_in_flight_of_a_killed_consumer_may_come_again(acknowledged, together):
    check = new_check(hand=4)
    receive_together(check, DELIVERIES[:4])
    receive_together(check, DELIVERIES[4:8])
    check.killed()
    again = DELIVERIES[4 + acknowledged : 8]
    deliveries = [*again, *DELIVERIES[8:]]
    flags = receive_together(check, deliveries[:together]) + receive_together(check, deliveries[together:])
    assert flags == [True] * len(again) + [False] * 4
    assert check.problems == []
    assert (check.again, check.in_hand) == (len(again), 4)


def test_what_was_acked_with_an_earlier_batch_may_not():
    check = new_check(hand=4)
    receive_together(check, DELIVERIES[:4])
    receive_together(check, DELIVERIES[4:8])
    check.killed()
    receive_together(check, DELIVERIES[3:])
    assert check.problems == ["delivered again after they were acknowledged: 1"]
    assert check.again == 4


def test_nothing_comes_again_after_a_new_line():
    check = new_check(hand=4)
    receive_together(check, DELIVERIES[:4])
    check.killed()
    receive_together(check, [*DELIVERIES[1:5], *DELIVERIES[:1], *DELIVERIES[5:]])
    assert check.problems == ["delivered again after they were acknowledged: 1"]


def test_it_may_come_again_once():
    check = new_check(hand=4)
    receive_together(check, DELIVERIES[:4])
    check.killed()
    receive_together(check, [*DELIVERIES[:4], *DELIVERIES[:2], *DELIVERIES[4:]])
    assert check.problems == ["delivered again after they were acknowledged: 2"]


# Several consumers.


@given(st.data())
def test_lines_may_be_shared_out_in_any_way(data):
    check = new_check(consumers=3)
    got: list[list] = [[], [], []]
    for delivery in DELIVERIES:
        got[data.draw(st.integers(0, 2))].append(delivery)
    while any(got):
        consumer = data.draw(st.sampled_from([number for number, lines in enumerate(got) if lines]))
        check.receive(got[consumer].pop(0), consumer)
    assert check.problems == []
    assert check.same_content
    assert check.lines_out == 12


def test_each_consumer_gets_a_producers_lines_in_order():
    check = new_check(consumers=2)
    for consumer, number in ((0, 4), (1, 0), (0, 2), (1, 6)):
        check.receive(DELIVERIES[number], consumer)
    assert check.late == 1


def test_what_a_killed_consumer_had_taken_comes_to_another_one_later():
    check = new_check(consumers=2, hand=2)
    receive_together(check, DELIVERIES[:2], consumer=0)
    receive_together(check, DELIVERIES[6:], consumer=1)
    check.killed(0)  # it had claimed lines 2 and 3 meanwhile, and not written them out
    assert receive_together(check, [*DELIVERIES[:2], *DELIVERIES[2:4]], consumer=1) == [
        True,
        True,
        False,
        False,
    ]
    assert receive_together(check, DELIVERIES[4:6], consumer=0) == [False, False]
    assert check.problems == []
    assert (check.again, check.excused, check.late) == (2, 2, 0)


def test_no_more_than_it_can_have_had():
    check = new_check(consumers=2, hand=2)
    receive_together(check, DELIVERIES[6:], consumer=1)
    check.killed(0)
    receive_together(check, DELIVERIES[:6], consumer=1)
    assert check.excused == 2
    assert check.problems == ["out of order: 4"]


def test_a_line_comes_to_two_consumers():
    check = new_check(consumers=2)
    for consumer, number in ((0, 0), (1, 1), (0, 2), (1, 2)):
        check.receive(DELIVERIES[number], consumer)
    assert check.repeated == 1


def test_a_line_comes_to_two_consumers_after_a_kill():
    check = new_check(consumers=2, hand=3)
    receive_together(check, DELIVERIES[:3], consumer=0)
    check.killed(0)
    for consumer in (0, 1):
        receive_together(check, DELIVERIES[:3], consumer)
    assert (check.again, check.repeated) == (3, 3)
