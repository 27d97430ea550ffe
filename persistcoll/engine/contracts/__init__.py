"""What a store is: the Protocols that containers use, and the laws that every store obeys.

A store keeps bytes. It never waits for an item or for room: each call is one short atomic operation that
answers now. Any thread may call it.

=====  =============================================================================================
S1     An operation that raised or was cut short by a crash happened wholly or not at all.
S2     What returned is durable, at the level that the store was opened with.
S3     A claim calls ``decode`` at most once (without ``decodes_once``, again where a connection was
       lost), before the removal is final; if ``decode`` raises, the record is where it was. ``claims``
       tells what was claimed, whatever came out of the call; after ``release`` it is where it was,
       and a claim that ended releases nothing.
S4     Records come in order of their ids, and ids grow and are never used twice, not even for a
       record that is gone. A record given back returns to its place. Without ``total_order`` ids grow
       for each producer, and a record may appear after one of another producer with a higher id.
S5     One record is never claimed by two consumers.
S6     An append never makes ``count()`` exceed ``capacity``, whatever others append.
S7     Stores with different names do not see each other.
S8     Closing and opening again changes nothing, except that a claimed record is ready again; in a
       record store it is dead if it was claimed too often, and still claimed without ``auto_reclaim``.
S9     After ``close`` every call raises ``ClosedError``, except ``close``.
S10    A forked child can use the store, and never disturbs its parent.
J1     After a crash a journal is a prefix of what was appended (of each producer, without
       ``total_order``), and contains every append that returned.
J2     Nothing ever appears behind a reader; without ``total_order``, nothing of the same producer.
J3     A cursor's commit is atomic and only moves forward; rewinding is a verb of its own.
J4     Trimming never removes what a cursor still needs.
T1     A record goes from ready or delayed to claimed, and from claimed to gone, done, failed, dead,
       delayed or ready; a done, failed or dead record is only ever removed.
T2     A claim that was lost (its lease ended, or it was given back) can do nothing any more:
       ``StaleClaimError``. A release that is sent again frees no later claim of the same record.
T3     A record is ready again after its lease ended, or its holder died and that was noticed; while
       the holder of a claim without a lease lives, it is not.
T4     A key is refused while a record of it is ready, delayed or claimed, and free after.
T5     What a joined store does is part of the caller's transaction: after its commit all see it, before
       it nothing else does, and after a rollback it did not happen.
M1     A pair store keeps its pairs in the order in which their keys came; a new value keeps the place
       and the original key. No iteration gives a key twice, or misses one that is there all the while.
M2     A transaction of a pair store happens wholly or not at all, it sees its own changes, and nothing
       else writes meanwhile.
M3     An expired pair is never seen.
=====  =============================================================================================

Tests carry these numbers in their names. :mod:`persistcoll.testing` has a function for each law: of queue
stores (S, J) in ``laws.queue_store``, of record stores (S, T) in ``laws.record_store``, of pair stores (M)
in ``laws.pair_store``.
"""

from persistcoll.engine.contracts.capabilities import StoreCapabilities
from persistcoll.engine.contracts.pair_store import Pair, PairStore
from persistcoll.engine.contracts.queue_store import MAX_POLL_INTERVAL, Claim, QueueStore, Select
from persistcoll.engine.contracts.record_store import RecordStore

__all__ = [
    "MAX_POLL_INTERVAL",
    "Claim",
    "Pair",
    "PairStore",
    "QueueStore",
    "RecordStore",
    "Select",
    "StoreCapabilities",
]
