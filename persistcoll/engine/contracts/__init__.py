"""The contracts of stores: the protocols that containers use, and the laws that every store obeys.

A store keeps bytes. It never waits for an item or for room: each call is one short atomic operation that
returns at once. Any thread may call it.

=====  =============================================================================================
S1     An operation that raised or was cut short by a crash happened wholly or not at all.
S2     An operation that returned is durable, at the level that the store was opened with.
S3     A claim calls ``decode`` at most once (without ``decodes_once``, again after a connection was
       lost), before the removal is final. If ``decode`` raises, the record stays ready in its place.
       ``claims`` lists the claims, whether the call returned or raised. After ``release`` a record is
       ready in its place, and the release of a claim that ended does nothing.
S4     Records come in the order of their ids. Ids grow and are never used twice, not even after a
       record was removed, unless its put was rolled back. A released record returns to its place.
       Without ``total_order`` ids grow for each producer, and a record may appear after one of another
       producer with a higher id.
S5     One record is never claimed by two consumers.
S6     An append never makes ``count()`` exceed ``capacity``, whatever others append.
S7     Stores with different names do not see each other.
S8     Closing and opening again changes nothing, except that a claimed record is ready again. In a
       record store it is dead if it has no attempts left, and still claimed without ``auto_reclaim``.
S9     After ``close`` every call raises ``ClosedError``, except ``close``.
S10    A forked child can use the store, and never disturbs its parent.
J1     After a crash a journal is a prefix of what was appended (of each producer, without
       ``total_order``), and contains every append that returned.
J2     No record ever appears before a record that a reader has read; without ``total_order`` this
       holds for the records of one producer.
J3     A cursor's commit is atomic, only moves forward, and moves no other cursor. Rewinding is an
       operation of its own.
J4     Trimming and retention never remove what a cursor still needs.
T1     A record goes from ready or delayed to claimed, and from claimed to removed, done, failed, dead,
       delayed or ready. A done record can only be removed. A failed or dead one can be removed or
       requeued: it is ready in its place, without attempts. A record keeps the reason for which its last
       claim that was not acked ended.
T2     A lost claim (its lease ended, or it was released) settles nothing: ``StaleClaimError``. A
       release that is sent again ends no later claim of the same record.
T3     A record is ready after its delay is over, after its lease ended, or after the store noticed that its
       holder died, and not before. A record that is claimed without a lease stays claimed while its holder
       lives.
T4     A key is refused while a record of this key is ready, delayed or claimed. Afterwards it is free.
       While it is refused, no record of this key is requeued.
T5     The operations of a joined store are part of the caller's transaction: only this transaction sees
       them before its commit, every caller sees them after it, and a rollback undoes them.
T6     A store's transaction happens wholly or not at all, and sees its own changes. After a rollback each
       claim is as it was before. Another task of the same thread is refused meanwhile.
M1     A pair store keeps its pairs in the order in which their keys were first set. A new value keeps
       the place and the original key. An iteration yields no key twice, and it yields each key that is
       stored from its begin to its end.
M2     A transaction of a pair store happens wholly or not at all. It sees its own changes, and no other
       transaction writes meanwhile.
M3     An expired pair is never seen.
Q1     A claim takes the ready message with the highest priority, and among equal ones the lowest id, of the
       topics asked for. A message that comes back has the place that it had.
Q2     Of one topic and group one message is claimed at a time, in the order of their ids. A claimed, delayed
       or ready head blocks all others. The next message becomes the head only when the head is finished.
Q3     A message is not claimed before its delay is over, and is ready after it.
Q4     A message is refused while its key is active: as long as a message of this key is unfinished, and for
       the window after its put. Otherwise it is stored.
Q5     An unfinished message is removed when its ttl is over, unless it is claimed. It is never claimed then.
Q6     A claim ends with its lease and not earlier, and an extension replaces the end of the lease.
Q7     A claim that has ended changes nothing, not even if the message is claimed again, or if the claim was
       part of a transaction that was rolled back. The error names all stale claims.
Q8     Each delivery counts as an attempt. A message without attempts left is dead when its claim ends without
       an ack. A release takes the attempt back. ``deliveries`` never falls, except by a rollback.
Q9     A nacked message is delayed by its back-off or by the given delay. A released one is ready at once.
Q10    A dead message keeps its id, payload, times and error until it is purged, cancelled or redriven.
Q11    Cancelling and purging remove only messages that nobody has claimed.
Q12    The deliveries of a topic never exceed its rate, whichever objects claim.
Q13    No message of a paused topic is delivered.
Q14    While a topic is locked, only the store object that has locked it claims from it.
Q15    A call with several messages, entries or claims does all of it or nothing. A claim that is named twice
       counts once.
Q16    The counts of the queue and of each topic are exact. A topic exists while a message of it is stored.
Q17    Only done and dead messages beyond the number to keep are removed by themselves, the lowest ids first.
Q18    A claim that finds nothing says when to look again, and that is never too late.
Q19    The observer of a store is told once of each thing that the calls of this store do to messages, after
       the commit and without a lock. It is told nothing of what was rolled back.
=====  =============================================================================================

Tests have these numbers in their names. :mod:`persistcoll.testing` has a function for each law:
``laws.queue_store`` for queue stores (S, J), ``laws.log_store`` for log stores (S, J),
``laws.record_store`` for record stores (S, T), ``laws.pair_store`` for pair stores (M) and
``laws.message_store`` for message stores (S, T5, T6, Q).
"""

from persistcoll.engine.contracts.capabilities import StoreCapabilities
from persistcoll.engine.contracts.log_store import CursorState, LogBounds, LogCursor, LogStore
from persistcoll.engine.contracts.message_store import MessageStore
from persistcoll.engine.contracts.pair_store import Pair, PairStore
from persistcoll.engine.contracts.queue_store import Claim, QueueStore, Select
from persistcoll.engine.contracts.record_store import RecordStore
from persistcoll.engine.contracts.store import MAX_POLL_INTERVAL, Awaited, Store

__all__ = [
    "MAX_POLL_INTERVAL",
    "Awaited",
    "Claim",
    "CursorState",
    "LogBounds",
    "LogCursor",
    "LogStore",
    "MessageStore",
    "Pair",
    "PairStore",
    "QueueStore",
    "RecordStore",
    "Select",
    "Store",
    "StoreCapabilities",
]
