"""The demo's account: what it accepts, and that nothing else passes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persistcoll.cli.demo_check import Check
from persistcoll.cli.demo_source import PRODUCERS, Digest, Expected

LINES = [b"line %d\n" % number for number in range(12)]
DELIVERIES = [(number % PRODUCERS, number, line) for number, line in enumerate(LINES)]


def new_check() -> Check:
    expected = []
    for producer in range(PRODUCERS):
        digest = Digest()
        for line in LINES[producer::PRODUCERS]:
            digest.add(line)
        expected.append(Expected(digest.lines, digest.hexdigest()))
    return Check(expected)


def checked(deliveries) -> Check:
    check = new_check()
    for delivery in deliveries:
        check.receive(delivery)
    return check


def problems(deliveries, kills=0):
    return checked(deliveries).problems(kills)


def test_what_went_in_comes_out():
    check = checked(DELIVERIES)
    assert check.problems(0) == []
    assert (check.lines_in, check.lines_out, check.lost, check.again) == (12, 12, 0, 0)
    assert check.same_content


@given(st.data())
def test_producers_may_be_interleaved_in_any_way(data):
    waiting = [DELIVERIES[producer::PRODUCERS] for producer in range(PRODUCERS)]
    check = new_check()
    while any(waiting):
        producer = data.draw(st.sampled_from([p for p in range(PRODUCERS) if waiting[p]]))
        check.receive(waiting[producer].pop(0))
    assert check.problems(0) == []


@given(st.lists(st.sampled_from(range(len(LINES))), unique=True))
def test_the_line_in_a_killed_consumers_hands_may_come_again(killed_at):
    check = new_check()
    for delivery in DELIVERIES:
        assert not check.receive(delivery)
        if delivery[1] in killed_at:
            check.new_consumer()
            assert check.receive(delivery)
    assert check.again == len(killed_at)
    assert check.problems(len(killed_at)) == []
    if killed_at:
        assert check.problems(len(killed_at) - 1)


def test_a_line_may_come_to_several_consumers_that_are_killed_with_it():
    check = new_check()
    for delivery in DELIVERIES:
        check.receive(delivery)
        if delivery[1] == 5:
            for _ in range(3):
                check.new_consumer()
                assert check.receive(delivery)
    assert check.problems(3) == []


def test_a_lost_line():
    for lost in range(len(LINES)):
        check = checked(DELIVERIES[:lost] + DELIVERIES[lost + 1 :])
        assert check.lost == 1
        assert check.problems(5) == ["lost: 1"]


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
    assert problems(deliveries, kills=5) == ["delivered again after they were acknowledged: 1"]


def test_an_acknowledged_line_again_after_a_kill():
    check = new_check()
    for delivery in DELIVERIES[:5]:
        check.receive(delivery)
    check.new_consumer()
    for delivery in DELIVERIES[3:]:
        check.receive(delivery)
    assert check.problems(5) == ["delivered again after they were acknowledged: 2"]


def test_a_line_again_with_other_content():
    check = new_check()
    check.receive(DELIVERIES[0])
    check.new_consumer()
    assert not check.receive((0, 0, b"LINE 0\n"))
    for delivery in DELIVERIES[1:]:
        check.receive(delivery)
    assert check.problems(5) == ["delivered again after they were acknowledged: 1"]


def test_lines_that_nobody_put():
    strangers = [
        (0, 12, b"too far"),
        (0, 1, b"not this producer's"),
        (7, 7, b"no such producer"),
        (0, -2, b""),
    ]
    for stranger in strangers:
        assert problems([*DELIVERIES, stranger]) == ["delivered and never put: 1"]
