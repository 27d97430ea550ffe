"""A caller's list names the claims of a call. No claim searches the list, because a search grows with it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import FIFO, ClaimPolicy, Entry
from tests.conformance.message_stores import SQLiteMessageStores
from tests.conformance.record_stores import SQLiteRecordStores


class Unsearched(list[Any]):
    def __contains__(self, claim: object) -> bool:
        raise AssertionError("the list was searched")


def test_records(tmp_path: Path) -> None:
    with closing(SQLiteRecordStores(tmp_path).open("records", FIFO, ClaimPolicy())) as store:
        store.put([Entry(b"")] * 5)
        claims = Unsearched()
        store.claim_many(5, lambda record: record.id, claims=claims)
        assert [id for id, _ in claims] == [1, 2, 3, 4, 5]


def test_messages(tmp_path: Path) -> None:
    with closing(SQLiteMessageStores(tmp_path).open("messages", MessagePolicy())) as store:
        store.put([MessageEntry(b"")] * 5)
        claims = Unsearched()
        store.claim(5, claims=claims)
        assert [claim.id for claim in claims] == [1, 2, 3, 4, 5]
