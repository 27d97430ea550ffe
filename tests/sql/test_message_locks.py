"""The locks of topics in SQLite, beyond the laws."""

from __future__ import annotations

from typing import Any

import pytest

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.errors import Empty
from tests.conformance.message_stores import SQLiteMessageStores


def test_a_lock_whose_lease_is_over_leaves_no_gate(tmp_path):
    """Otherwise each claim of any topic would look at every topic from then on."""
    stores = SQLiteMessageStores(tmp_path)
    store: Any
    other: Any
    store, other = (stores.open("a", MessagePolicy()) for _ in range(2))
    store.put([MessageEntry(b"", topic="t")])
    assert store.lock_topic("t", 5.0)
    assert store.lock_topic("empty", 5.0)
    with pytest.raises(Empty):
        other.claim()
    assert other._counters.gated == {"t", "empty"}
    stores.advance(5.0)
    assert other.claim()
    assert other._counters.gated == set()
    third = stores.open("a", MessagePolicy())
    assert third.topics() == {"t": 0}
    for each in (store, other, third):
        each.close()
