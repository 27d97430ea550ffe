"""The laws Q15 to Q17 of message stores. See :mod:`persistcoll.testing.laws.message_store`."""

from __future__ import annotations

import threading

from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import Backoff, State
from persistcoll.errors import EncodeError
from persistcoll.testing.children import check, run_threads
from persistcoll.testing.laws.message_store_counts import COUNT_LAWS
from persistcoll.testing.laws.message_store_harness import (
    KEEPS,
    PLAIN,
    MessageStoreHarness,
    MessageStoreLaw,
    claim_all,
    claim_of,
    claims_of,
    contents,
    message_store_law,
    payloads,
    put,
    refuses,
    settling,
    stale,
    standing,
    totals,
)

__all__ = ["CONTENT_LAWS"]

_MOST_PAYLOAD = 1 << 26
"""Bytes of a payload that a law tries."""
_SLACK = 128
"""A store may keep so many finished messages more than it was told to, before it trims."""


@message_store_law("Q15")
def all_or_nothing(harness: MessageStoreHarness) -> None:
    """Every call with several messages, entries or claims does all of it or nothing."""
    _batches_of_entries(harness)
    _batches_of_claims(harness)
    _batches_with_stale_claims(harness)
    _batches_of_messages(harness)
    _seen_as_one(harness)


def _batches_of_entries(harness: MessageStoreHarness) -> None:
    store = harness.open("entries")
    entry = harness.entry
    check(store.put([]) == [], "put() of nothing gave an id")
    put(store, entry("0", key=b"0", group="g"))
    batch = [
        entry("1", key=b"0", group="g"),
        entry("2", key=b"1", group="g"),
        entry("3", key=b"1", topic="t", group="g"),
        entry("4", group="g"),
        entry("5", key=b"2", topic="t", group="g"),
        entry("6", key=b"0"),
        entry("7", key=b"2", delay=900.0),
        entry("8", topic="t", group="g", delay=900.0),
        entry("9", delay=900.0),
    ]
    ids = store.put(batch)
    check([id is None for id in ids] == [n in (0, 2, 5, 6) for n in range(9)], f"put() of {batch} gave {ids}")
    wanted = dict.fromkeys("248", State.BLOCKED) | {"0": State.READY, "5": State.READY, "9": State.DELAYED}
    found = standing(store)
    check(found == wanted, f"put() of {batch} made {found}, not {wanted}")
    stored = [record.payload.decode() for id in ids if id is not None and (record := store.find(id))]
    check(stored == ["2", "4", "5", "8", "9"], f"the ids that put() returned are those of {stored}")
    check(store.put(batch[:1] * 3) == [None] * 3, "put() of what is refused alone")
    limit = store.capabilities.max_payload
    if limit is not None and limit <= _MOST_PAYLOAD:
        large = MessageEntry(b"x" * (limit + 1), key=b"large")
        more = [entry("a", key=b"a"), entry("b", group="h"), entry("c")]
        for place in range(4):
            with refuses(EncodeError, f"put() whose entry {place} is too large", store):
                store.put([*more[:place], large, *more[place:]])
        check(None not in store.put(more), "put() that raised left a key active")
        check(standing(store)["b"] is State.READY, "put() that raised left something in a group")


def _batches_of_claims(harness: MessageStoreHarness) -> None:
    store = harness.open("claims")
    other = harness.another(store, "claims")
    for call in (store.deliver, store.ack, store.nack, store.fail):
        call([])
    store.extend([], harness.seconds(1.0))
    check(store.release([]) == 0, "release() of nothing counted something")
    put(store, *_entries(harness))
    held: list[MessageClaim] = []
    got = store.claim(2, ["s"], claims=held) + other.claim(9, claims=held)
    check(payloads(got) == list(_HEADS), f"claim() of two messages and of the rest gave {payloads(got)}")
    check(held == claims_of(got), f"the claims of {got} are {held}")
    until = other.extend(held[::-1], harness.seconds(700.0))
    ends = {record.until for record in contents(store) if record.state is State.CLAIMED}
    check(ends == {until}, f"extend() of five claims returned {until}, and they end at {ends}")
    _settled_together(harness)


_HEADS = ("sg0", "sh0", "tg0", "th0", "s-")
_FOLLOWERS = ("sg1", "sh1", "tg1", "th1")


def _entries(harness: MessageStoreHarness) -> list[MessageEntry]:
    """Return entries of two topics with two groups each, a head and a follower in each, and one alone."""
    names = (*_HEADS, *_FOLLOWERS)
    groups = {"g": "g", "h": "h", "-": None}
    return [harness.entry(name, topic=name[0], group=groups[name[1]], key=name.encode()) for name in names]


def _settled_together(harness: MessageStoreHarness) -> None:
    after: dict[str, tuple[State, State]] = {
        "ack": (State.DONE, State.READY),
        "fail": (State.DEAD, State.READY),
        "nack": (State.DELAYED, State.BLOCKED),
        "release": (State.READY, State.BLOCKED),
    }
    for verb, (head, follower) in after.items():
        policy = KEEPS._replace(backoff=Backoff(900.0, 2.0, 3600.0, 0.0))
        store = harness.open(verb, policy)
        other = harness.another(store, verb, policy)
        put(store, *_entries(harness))
        claims = claims_of(store.claim(1) + other.claim(9))
        result = getattr(other, verb)(claims)
        wanted = dict.fromkeys(_HEADS, head) | dict.fromkeys(_FOLLOWERS, follower)
        found = standing(store)
        check(found == wanted, f"{verb}() of five claims made {found}, not {wanted}")
        check(verb != "release" or result == 5, f"release() of five claims returned {result}")
        repeated = store.put([harness.entry("x", key=name.encode(), delay=900.0) for name in _HEADS])
        is_free = head in (State.DONE, State.DEAD)
        free = [id is not None for id in repeated]
        check(free == [is_free] * 5, f"{verb}() of five claims made keys free: {free}")


def _batches_with_stale_claims(harness: MessageStoreHarness) -> None:
    store = harness.open("stale", KEEPS)
    other = harness.another(store, "stale", KEEPS)
    put(store, *(harness.entry(name) for name in "abcdefg"))
    held = [claim_of((store, other)[number % 2], "default") for number in range(5)]
    short = claims_of(store.claim(2, lease=harness.seconds(20.0)))
    harness.advance(20.0)
    store.ack(held[4:])
    wrong = [short[1], held[4], short[0]]
    ids = [claim.id for claim in wrong]
    for claims in ([held[0], *wrong[:2], *held[1:4], wrong[2]], wrong):
        for name, call in settling(harness, other, claims).items():
            with stale(ids, f"{name} of {len(claims)} claims, of which three have ended,", store):
                call()
    count = other.release([wrong[0], held[0], *wrong[1:], held[0]])
    check(count == 1, f"release() of one claim twice and of three that have ended returned {count}")
    check(store.has_unfinished(), "release() of ended claims removed messages")
    for name, call in settling(harness, store, held[:2]).items():
        with stale([held[0].id], f"{name} with a claim that was released", store):
            call()
    with stale([held[0].id], "ack() with a claim that was released", store):
        store.ack(held[:2])
    store.fail(held[1:2])
    for twice in (store.nack, store.ack):
        try:
            twice([held[2], held[2]])
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{twice.__name__}() of one claim twice raised {error!r}") from error
        held = held[1:]
    found = standing(store)
    wanted = dict.fromkeys("afg", State.READY) | {"b": State.DEAD, "c": State.READY}
    wanted |= {"d": State.DONE, "e": State.DONE}
    check(found == wanted, f"settled in batches: {found}, not {wanted}")


def _batches_of_messages(harness: MessageStoreHarness) -> None:
    """Check the calls that choose the messages by themselves."""
    store = harness.open("messages")
    names = [f"{topic}{number}" for topic in "st" for number in range(4)]
    put(store, *(harness.entry(name, topic=name[0], key=name.encode()) for name in names))
    store.fail(claims_of(store.claim(6)))
    (another,) = put(store, harness.entry("t1 again", topic="u", key=b"t1"))
    check(store.redrive_all("s") == 4, "redrive_all() of a topic did not redrive its four messages")
    check(store.redrive_all() == 1, "redrive_all() did not redrive the one whose key is free")
    found = {name for name, state in standing(store).items() if state is State.DEAD}
    check(found == {"t1"}, f"dead after redrive_all() are {found}")
    check(store.redrive_all() == 0, "redrive_all() counted one whose key another message has")
    check(store.purge("t", dead=True) == 1, "purge() of the dead of a topic did not count one")
    (held,) = claims_of(store.claim(1, ["s"]))
    check(store.purge("s") == 3, "purge() of a topic did not count three of four")
    check(store.purge() == 4, "purge() did not count the three of a topic, and the last one")
    check([record.id for record in contents(store)] == [held.id], f"purge() left {contents(store)}")
    check(store.find(another) is None, "purge() counted what it left")
    store.ack([held])
    check(store.purge() + store.purge(dead=True) + store.redrive_all() == 0, "in an empty store, and counted")


def _seen_as_one(harness: MessageStoreHarness) -> None:
    """Check that no other thread sees a part of a call."""
    store = harness.open("one")
    other = harness.another(store, "one")
    size, rounds = 6, 4
    over = threading.Event()

    def write() -> None:
        try:
            for _ in range(rounds):
                put(store, *[harness.entry("a")] * size)
                store.nack(claims_of(store.claim(size)))
                store.release(claims_of(store.claim(size)))
                store.nack(claims_of(store.claim(size)), harness.seconds(900.0))
                store.purge()
                put(store, *[harness.entry("a")] * size)
                store.fail(claims_of(store.claim(size)))
                store.redrive_all()
                store.fail(claims_of(store.claim(size)))
                store.purge(dead=True)
                put(store, *[harness.entry("a")] * size)
                store.ack(claims_of(store.claim(size)))
        finally:
            over.set()

    def read() -> None:
        while not over.is_set():
            told = other.stats()
            parts = [state for state in State if getattr(told, state.value) % size]
            check(not parts, f"of calls with {size} messages each another thread saw a part: {told}")

    run_threads(write, read)
    check(contents(store) == [], f"at the end there is {contents(store)}")


@message_store_law("Q17")
def nothing_else_goes_by_itself(harness: MessageStoreHarness) -> None:
    """Only done and dead messages beyond the number to keep are removed by themselves, the oldest first."""
    _what_is_kept(harness)
    _what_is_not_kept(harness)
    _trimmed_beside_others(harness)
    _what_stays(harness)


def _what_is_kept(harness: MessageStoreHarness) -> None:
    policy = PLAIN._replace(keep_done=3, keep_dead=5, max_attempts=1)
    store = harness.open("kept", policy)
    other = harness.another(store, "kept", policy)
    keep = {State.DONE: 3, State.DEAD: 5}
    finished: dict[State, list[int]] = {State.DONE: [], State.DEAD: []}
    turn = total = 0
    while min(map(len, finished.values())) < _SLACK + 20:
        mine, turn = (store, other)[turn % 2], turn + 1
        size = 1 + turn % 9
        total += len(put(store, *(harness.entry("a", topic="st"[number % 2]) for number in range(size))))
        claims = claims_of(mine.claim(size))
        state = State.DONE if turn % 2 else State.DEAD
        verb = mine.ack if state is State.DONE else (mine.fail, mine.nack)[turn // 2 % 2]
        verb(claims)
        finished[state] += [claim.id for claim in claims]
        told = other.stats()
        for each, count in {State.DONE: told.done, State.DEAD: told.dead}.items():
            least = min(len(finished[each]), keep[each])
            enough = least <= count <= keep[each] + _SLACK
            check(enough, f"of {len(finished[each])} {each.value} messages {count} are kept, not {least}")
    for state, ids in finished.items():
        kept = [record.id for record in store.scan(state)]
        check(kept == sorted(ids)[-len(kept) :], f"kept are not the newest {state.value} messages: {kept}")
    contents(store)
    check(totals(store) == (total, total, 0), f"of {total} messages the totals are {totals(store)}")


def _what_is_not_kept(harness: MessageStoreHarness) -> None:
    store = harness.open("not kept")
    put(store, *(harness.entry(name, topic=name, key=b"k" + name.encode()) for name in "abc"))
    put(store, harness.entry("window", key=b"window", key_window=900.0))
    store.ack([claim_of(store, "a")])
    check(set(store.topics()) == {"b", "c", "default"}, f"acked and kept: {contents(store)}")
    store.ack(claims_of(store.claim(3)))
    check(contents(store) == [], f"kept, though none should be: {contents(store)}")
    ids = store.put([harness.entry("x", key=key) for key in (b"ka", b"window")])
    check(ids[0] is not None and ids[1] is None, f"a key of a removed message, and one in its window: {ids}")


def _trimmed_beside_others(harness: MessageStoreHarness) -> None:
    """Check that a trim removes nothing that is not finished any more, and moves no group on."""
    policy = PLAIN._replace(keep_dead=1, keep_done=1, max_attempts=1)
    store = harness.open("beside", policy)
    (redriven,) = put(store, harness.entry("redriven", topic="r", key=b"r"))
    store.fail([claim_of(store, "r")])
    check(store.redrive(redriven), "the newest dead message is not kept")
    put(store, *(harness.entry(f"g{n}", group="g", topic="g") for n in range(4)))
    for verb in (store.fail, store.ack):
        verb([claim_of(store, "g")])
    put(store, *(harness.entry("a", key=b"a%d" % n) for n in range(3 * _SLACK)))
    for size in (_SLACK, 2):
        store.fail(claims_of(store.claim(size, ["default"])))
        store.ack(claims_of(store.claim(size - 1, ["default"])))
    states = {name: state for name, state in standing(store).items() if name in ("redriven", "g2", "g3")}
    wanted = {"redriven": State.READY, "g2": State.READY, "g3": State.BLOCKED}
    check(states == wanted, f"after a trim beside them: {states}, not {wanted}")
    check(store.put([harness.entry("x", key=b"r")]) == [None], "a trim freed the key of a redriven message")
    newest = [record.id for record in store.scan(State.DEAD)][-1]
    check(store.cancel(newest), "cancel() found no dead message")


def _what_stays(harness: MessageStoreHarness) -> None:
    policy = PLAIN._replace(keep_done=2, max_attempts=1)
    store = harness.open("stays", policy)
    other = harness.another(store, "stays", policy)
    entry = harness.entry
    for name in ("done", "dead", "spent"):
        put(store, *(entry(f"{name} {number}", topic=name, ttl=15.0) for number in range(2)))
    store.ack(claims_of(store.claim(2, ["done"])))
    store.fail(claims_of(store.claim(2, ["dead"])))
    store.nack(claims_of(store.claim(2, ["spent"])))
    put(store, entry("claimed", topic="claimed", ttl=15.0), entry("ready"), entry("delayed", delay=900.0))
    put(store, *(entry(f"g{number}", group="g", delay=900.0) for number in range(3)))
    held = claim_of(store, "claimed")
    before = contents(store)
    harness.advance(40.0)
    for name, call in {
        "time": lambda: None,
        "reclaim()": store.reclaim,
        "shrink()": store.shrink,
        "checkpoint()": store.checkpoint,
        "put()": lambda: store.cancel(put(store, entry("x"))[0]),
        "claim() and release()": lambda: other.release(claims_of(other.claim(1, ["default"]))),
        "closing": harness.open("stays", policy).close,
    }.items():
        call()
        found = [record._replace(deliveries=0) for record in contents(other)]
        wanted = [record._replace(deliveries=0) for record in before]
        check(found == wanted, f"after {name} there is {found}, not {wanted}")
    check(store.redrive_all("dead") == 2, "the dead are not kept for ever")
    check(len(claim_all(store, ["dead"])) == 2, "the dead that were redriven are gone")
    store.ack([held])


CONTENT_LAWS: tuple[MessageStoreLaw, ...] = (all_or_nothing, *COUNT_LAWS, nothing_else_goes_by_itself)
"""By number."""
