"""Where looks at the head of a queue begin: at the floor while full looks are slow."""

from __future__ import annotations

import math
import re
from contextlib import closing
from types import SimpleNamespace

import pytest

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import FIFO, LIFO, PRIORITY, ClaimPolicy, Entry
from persistcoll.errors import Empty
from persistcoll.servers import heads
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.driver import Result
from persistcoll.servers.heads import PAUSE, SLOW, UNDER_WAY, Heads, Look
from persistcoll.servers.open import open_message_store
from persistcoll.servers.sessions import Session
from persistcoll.testing.laws.message_store_harness import claims_of
from tests.servers.floors import AtLastClaim, FromFloor, FromLastClaim
from tests.servers.places import CallerConnection

FEW = 150  # pages; full looks read more after 1,000 cycles
SQL = SimpleNamespace(look="full", from_floor={"look": "from the floor"})


class FakeSession:
    """A session whose statements take as long as the test says, by a clock that only they move.

    :ivar texts: what was run.
    """

    def __init__(self):
        self.now = 100.0
        self.texts = []
        self.found = True
        self.seconds = {"full": 0.0, "from the floor": 0.0}

    def run(self, text, **parameters):
        self.texts.append(text)
        self.now += self.seconds[text]
        rows = [(1, 0.0)] if self.found or text == "full" else []
        return Result(rows, len(rows), 0)


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def one(session):
    one = AtLastClaim(lambda: session.now)
    claimed(one, 7)
    return one


@pytest.fixture
def lagging(session):
    """Return heads whose floor is a claim of some time ago, as it is outside of tests."""
    lagging = Heads(lambda: session.now)
    claimed(lagging, 7)
    return lagging


def claimed(one, id, topic=None, place=0.0):
    one.claimed(Look(Result([], 0, 0), one._clock(), True), place, id, topic)


def texts_of(session, one, looks=1):
    session.texts.clear()
    for _ in range(looks):
        one.look(session, SQL, "look")
    return session.texts


def test_quick_looks_are_full(session, one):
    session.seconds["full"] = SLOW / 2
    assert texts_of(session, one, 5) == ["full"] * 5


def test_one_slow_look_changes_nothing(session, one):
    session.seconds["full"] = 1.0
    one.look(session, SQL, "look")
    session.seconds["full"] = 0.0
    assert texts_of(session, one, 5) == ["full"] * 5


def test_after_slow_looks_others_begin_at_the_floor_until_the_pause_is_over(session, one):
    session.seconds["full"] = 0.01
    assert texts_of(session, one, 5) == ["full", "full", *["from the floor"] * 3]
    session.now += PAUSE * 0.01 - 0.001
    assert texts_of(session, one) == ["from the floor"]
    session.now += 0.002
    assert texts_of(session, one, 2) == ["full", "from the floor"]


def test_full_looks_take_a_twentieth_of_the_time(session, one):
    session.seconds |= {"full": 0.01, "from the floor": 0.0001}
    begin, full = session.now, 0
    for _ in range(100_000):
        full += texts_of(session, one).count("full")
    assert full * 0.01 <= (session.now - begin) / PAUSE + 0.02


def test_a_look_from_the_floor_that_finds_nothing_is_followed_by_a_full_one(session, one):
    session.seconds["full"] = 0.01
    one.look(session, SQL, "look")
    one.look(session, SQL, "look")
    session.found = False
    look = one.look(session, SQL, "look")
    assert session.texts[-2:] == ["from the floor", "full"]
    assert look.result.rows
    assert look.is_full


def test_without_a_claim_each_look_is_full(session):
    session.seconds["full"] = 0.01
    assert texts_of(session, Heads(lambda: session.now), 4) == ["full"] * 4


def test_a_slow_network_is_no_slow_look(session, one):
    session.seconds |= {"full": 0.05, "from the floor": 0.05}
    texts_of(session, one, 100)
    session.now += PAUSE * 0.05
    assert texts_of(session, one, 5) == ["full"] * 5


def test_statements_and_topics_have_paces_of_their_own(session, one):
    both = SimpleNamespace(
        look="full", other="from the floor", from_floor=dict.fromkeys(("look", "other"), "x")
    )
    session.seconds |= {"full": 0.01, "x": 0.0}
    for _ in range(3):
        one.look(session, both, "look")
        one.look(session, both, "other")
    assert session.texts[-2:] == ["x", "from the floor"]
    one.look(session, both, "look", b"topic")
    assert session.texts[-1] == "full"


def test_long_claims_of_many_rows_say_nothing_of_claims_of_one(session, one):
    session.seconds |= {"full": 0.05, "from the floor": 0.05}
    for _ in range(50):
        one.look(session, SQL, "look", limit=1000)
    session.now += PAUSE * 0.05
    assert texts_of(session, one) == ["full"]
    session.seconds |= {"full": 0.01, "from the floor": 0.0}
    assert texts_of(session, one, 3)[1:] == ["from the floor"] * 2


def test_what_comes_back_lowers_the_floors_of_its_topic_and_of_all(one):
    claimed(one, 7, b"a")
    claimed(one, 7, b"b")
    one.lower(0.0, 3, b"a")
    one.lower(0.0, 9, b"b")
    assert floors_of(one) == {None: (0.0, 3), b"a": (0.0, 3), b"b": (0.0, 7)}
    one.lower(-1.0, 8, b"c")
    assert floors_of(one) == {None: (-1.0, 8), b"a": (0.0, 3), b"b": (0.0, 7)}


def floors_of(one):
    return {topic: floor.place for topic, floor in one._floors.items()}


def test_a_claim_is_the_floor_once_a_later_look_has_claimed_behind_it(session, lagging):
    session.now += UNDER_WAY / 2
    claimed(lagging, 8)
    assert floors_of(lagging) == {None: None}
    session.now += UNDER_WAY / 2
    claimed(lagging, 9)
    assert floors_of(lagging) == {None: (0.0, 7)}
    session.now += UNDER_WAY
    claimed(lagging, 10)
    assert floors_of(lagging) == {None: (0.0, 9)}


def test_a_look_that_began_too_early_moves_no_floor(session, lagging):
    early = Look(Result([], 0, 0), session.now, True)
    session.now += UNDER_WAY
    lagging.claimed(early, 0.0, 8)
    assert floors_of(lagging) == {None: None}


def test_what_is_claimed_in_front_of_the_next_floor_is_the_next_floor(session, lagging):
    """A late commit may have more than one item."""
    session.now += UNDER_WAY
    claimed(lagging, 9)
    session.now += UNDER_WAY
    claimed(lagging, 8)
    assert floors_of(lagging) == {None: (0.0, 7)}
    session.now += UNDER_WAY
    claimed(lagging, 10)
    assert floors_of(lagging) == {None: (0.0, 8)}
    claimed(lagging, 3)
    assert floors_of(lagging) == {None: (0.0, 3)}


def test_what_comes_back_in_front_of_the_next_floor_lowers_it(session, lagging):
    session.now += UNDER_WAY
    claimed(lagging, 9)
    session.now += UNDER_WAY
    lagging.lower(0.0, 8)
    claimed(lagging, 10)
    assert floors_of(lagging) == {None: (0.0, 7)}
    lagging.lower(0.0, 2)
    assert floors_of(lagging) == {None: (0.0, 2)}


def test_the_floors_of_many_topics_are_forgotten(session, one, monkeypatch):
    monkeypatch.setattr(heads, "_MOST_PACES", 10)
    for number in range(100):
        one.look(session, SQL, "look", b"%d" % number)
        claimed(one, number, b"%d" % number)
    assert len(one._floors) <= 11
    assert len(one._paces) <= 10


# On servers.


class SlowFullLooks:
    """Lets each full look of a store take 10 ms, by a clock that only these move.

    :ivar claims: those that were made so.
    """

    def __init__(self, store, monkeypatch):
        self.now = 100.0
        self.claims = []
        self.sql = store._sql
        store._heads = AtLastClaim(lambda: self.now)
        run = Session.run

        def run_slowly(session, text, **parameters):
            full = {getattr(self.sql, name) for name in self.sql.from_floor}
            self.now += 0.01 * (text in full)
            return run(session, text, **parameters)

        monkeypatch.setattr(Session, "run", run_slowly)


class Records:
    """Record stores, in the words that both kinds of stores have here."""

    def __init__(self, opened, discipline=PRIORITY):
        self.one, self.other = (opened(discipline=discipline, retry=ClaimPolicy(lease=99.0)) for _ in "12")

    def put(self, store, name, place=1):
        return store.put([Entry(name.encode(), priority=place)])[0]

    def claim(self, store):
        record = store.claim(lambda record: record)
        return record.payload.decode(), record.id

    def release(self, store, claim):
        store.release([(claim, store._held[claim][0])])

    def nack(self, store, claim):
        store.nack(claim)

    def settle(self, store, count):
        """Claim and ack so many."""
        store.ack(store.claim_many(count, lambda record: record.id))


class FifoRecords(Records):
    def __init__(self, opened):
        super().__init__(opened, FIFO)


class Messages:
    """Message stores, too."""

    def __init__(self, place):
        self.one, self.other = (
            open_message_store(
                place.address,
                name="messages",
                policy=MessagePolicy(lease=99.0),
                serializer="raw",
                durability="process",
                schema=place.schema,
            )
            for _ in "12"
        )

    topics: tuple[str, ...] | None = None

    def put(self, store, name, place=1):
        return store.put([MessageEntry(name.encode(), topic="t", priority=-place)])[0]

    def claim(self, store):
        [record] = store.claim(1, self.topics)
        return record.payload.decode(), claims_of([record])

    def release(self, store, claim):
        store.release(claim)

    def nack(self, store, claim):
        store.nack(claim, 0.0)

    def settle(self, store, count):
        store.ack(claims_of(store.claim(count, self.topics)))


class MessagesOfATopic(Messages):
    topics = ("t",)


@pytest.fixture(params=["records", "records without priorities", "messages", "messages of a topic"])
def stores(request, place, opened):
    if request.param.startswith("records"):
        yield (Records if request.param == "records" else FifoRecords)(opened)
        return
    made = (Messages if request.param == "messages" else MessagesOfATopic)(place)
    yield made
    made.one.close()
    made.other.close()


@pytest.fixture
def at_floor(stores, monkeypatch):
    """Put eight items, claim four, and return the clock: the looks of ``one`` begin at the fourth."""
    for number in range(8):
        stores.put(stores.other, str(number))
    clock = SlowFullLooks(stores.one, monkeypatch)
    clock.claims = [stores.claim(stores.one) for _ in range(4)]
    assert [name for name, _ in clock.claims] == list("0123")
    return clock


def names(stores, count):
    return [stores.claim(stores.one)[0] for _ in range(count)]


def test_what_another_process_returns_in_front_is_found_when_the_pause_is_over(stores, at_floor):
    name, claim = stores.claim(stores.other)
    assert (name, names(stores, 1)) == ("4", ["5"])
    stores.release(stores.other, claim)
    assert names(stores, 1) == ["6"]  # It is before the floor.
    at_floor.now += 0.01 + PAUSE * 0.01
    assert names(stores, 2) == ["4", "7"]


def test_what_another_process_returns_in_front_is_found_before_the_queue_is_empty(stores, at_floor):
    _, claim = stores.claim(stores.other)
    names(stores, 1)
    stores.release(stores.other, claim)
    assert names(stores, 3) == ["6", "7", "4"]
    with pytest.raises(Empty):
        stores.claim(stores.one)


def test_what_is_in_front_does_not_starve_while_others_come(stores, at_floor):
    _, claim = stores.claim(stores.other)
    names(stores, 1)
    stores.release(stores.other, claim)
    found = []
    while "4" not in found:
        at_floor.now += 0.001
        stores.put(stores.other, "more")
        found += names(stores, 1)
        assert len(found) <= PAUSE * 10 + 2


def test_all_that_is_in_front_comes_in_its_order_once_it_is_found(stores, at_floor):
    for _, claim in at_floor.claims[:3]:
        stores.nack(stores.one, claim)
    behind = 0.0 if isinstance(stores, FifoRecords) else 1.0
    claimed(stores.one._heads, 1 << 40, place=behind)
    at_floor.now += 0.01 + PAUSE * 0.01
    if isinstance(stores, Messages):
        claimed(stores.one._heads, 1 << 40, b"t", behind)
    assert names(stores, 4) == ["0", "1", "2", "4"]


def test_what_is_put_in_front_by_another_process_is_found(stores, at_floor):
    stores.put(stores.other, "first", 0)
    by_priority = not isinstance(stores, FifoRecords)
    assert names(stores, 1) == ["4"]
    at_floor.now += 0.01 + PAUSE * 0.01
    assert names(stores, 2) == (["first", "5"] if by_priority else ["5", "6"])


@pytest.mark.parametrize("verb", ["nack", "release"])
def test_what_the_object_itself_returns_is_next(stores, at_floor, verb):
    _, claim = at_floor.claims[1]
    getattr(stores, verb)(stores.one, claim)
    assert names(stores, 2) == ["1", "4"]


def test_what_is_committed_late_comes_in_its_place(place, stores):
    """Otherwise the items of one producer may come out of their order."""
    heads = stores.one._heads = FromFloor(lambda: clock.now)
    clock = SimpleNamespace(now=100.0)
    for number in range(3):
        stores.put(stores.one, str(number))
        clock.now += UNDER_WAY
        assert names(stores, 1) == [str(number)]
    with closing(CallerConnection(place)) as caller:
        late = stores.other.joined(caller.connection)
        for name in "ab":
            stores.put(late, name)
        for name in "cdefg":
            stores.put(stores.one, name)
        assert names(stores, 2) == ["c", "d"]
        clock.now += UNDER_WAY - 0.01
        caller.connection.commit()
    clock.now += 0.02
    assert names(stores, 2) == ["a", "b"]
    clock.now += UNDER_WAY
    assert names(stores, 2) == ["e", "f"]
    assert all(floor.place is not None for topic, floor in heads._floors.items())
    assert heads.found > 5


def test_what_the_object_itself_puts_in_front_is_next(stores, at_floor):
    stores.put(stores.one, "first", 0)
    by_priority = not isinstance(stores, FifoRecords)
    assert names(stores, 1) == (["first"] if by_priority else ["4"])


def test_what_the_object_itself_makes_ready_again_is_next(stores, at_floor):
    (_, first), (_, second), *_ = at_floor.claims
    if isinstance(stores, Messages):
        stores.one.fail(first)
        stores.one.fail(second)
        assert stores.one.redrive_all() == 2
    else:
        stores.one.fail([first, second])
        assert stores.one.requeue() == 2
    assert names(stores, 3) == ["0", "1", "4"]


def test_the_next_one_of_a_group_is_next(stores, at_floor):
    if not isinstance(stores, Messages):
        pytest.skip("records have no groups")
    entries = [MessageEntry(name.encode(), topic="t", group="g", priority=5) for name in ("head", "next")]
    stores.one.put(entries)
    name, claim = stores.claim(stores.one)
    assert (name, names(stores, 1)) == ("head", ["4"])
    stores.one.ack(claim)
    assert names(stores, 2) == ["next", "5"]


def test_a_lease_that_ends_is_seen_from_the_floor(place, stores, at_floor):
    """Only ends since the last full look are looked at, because nothing was due then."""
    stores.one._heads = FromLastClaim(lambda: at_floor.now)
    assert names(stores, 1) == ["4"]
    stores.claim(stores.other)
    second, is_due_set = ("1000000", "due > 0") if place.kind == MYSQL else ("interval '1 second'", "TRUE")
    place.run(f"UPDATE {place.name}.pc_1 SET due = due - 100 * {second} WHERE id = 6 AND {is_due_set}")
    assert names(stores, 1) == ["6"]
    at_floor.now += 3.0
    assert names(stores, 2) == ["5", "7"]


@pytest.mark.parametrize("discipline", [FIFO, PRIORITY, LIFO], ids=lambda each: each.name)
def test_which_statements_begin_at_the_floor(place, opened, discipline):
    sql = opened(discipline=discipline)._sql
    at_once = {"claim_next", "claim_one", "take_next", "take_one"} if place.kind == POSTGRESQL else set()
    looks = {"look", "lock_next"} | at_once
    assert set(sql.from_floor) == (set() if discipline is LIFO else looks)


def pages_read(place, text, parameters):
    """Return how many pages of its buffers the server reads for a statement."""
    if place.kind == POSTGRESQL:
        lines = [line for (line,) in place.run(f"EXPLAIN (ANALYZE, BUFFERS) {text}", **parameters)]
        total = next(line for line in lines if "Buffers:" in line)  # that of the whole statement comes first
        return sum(int(count) for count in re.findall(r"(?:hit|read)=(\d+)", total))
    requests = "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_read_requests'"
    counts = [math.inf]
    while len(counts) < (10 if min(counts) < FEW else 300):  # others may use the server, too
        ((_, before),) = place.run(requests)
        place.run(text, **parameters)
        ((_, after),) = place.run(requests)
        counts.append(int(after) - int(before))
    return min(counts)


def test_a_look_from_the_floor_reads_as_few_pages_however_long_others_keep_old_rows(place, stores):
    def cycles(count):
        for _ in range(count):
            for _ in range(20):
                stores.put(stores.one, "x")
            stores.settle(stores.one, 20)

    def pages():
        sql = stores.one._sql
        claim = "lock_next" if place.kind == MYSQL else "claim_next"
        topic = b"t" if isinstance(stores, Messages) and stores.topics else None
        of = "_of" if topic else ""
        floor_place, floor_id = stores.one._heads._floors[topic].place
        parameters = {
            "limit": 1, "promoted": False, "holder": 1, "fence": 1, "token": 1, "lease": 1.0,
            "policy_lease": 1.0, "floor_place": floor_place, "floor_id": floor_id, "age": 1.0, "topic": topic,
        }  # fmt: skip
        place.run(f"USE {place.name}" if place.kind == MYSQL else f"SET search_path = {place.name}")
        texts = {"full": getattr(sql, claim + of), "floor": sql.from_floor[claim + of]}
        place.run("BEGIN")
        found = {name: pages_read(place, text, parameters) for name, text in texts.items()}
        place.run("ROLLBACK")
        return found

    stores.one._heads = AtLastClaim()
    for _ in range(50):
        stores.put(stores.one, "waits")
    pinning = CallerConnection(place)
    try:
        with pinning.connection.cursor() as cursor:
            if place.kind == MYSQL:
                cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            else:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT 1 FROM pg_class LIMIT 1")
            cycles(5)
            few = pages()
            cycles(50)
            many = pages()
    finally:
        pinning.connection.rollback()
        pinning.close()
    assert many["full"] > 2 * few["full"]
    assert many["floor"] < min(FEW, many["full"] / 2)
