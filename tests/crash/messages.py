"""How the tests of crashes open message stores, and check what lies in their tables."""

from __future__ import annotations

import contextlib
import sqlite3
from os import PathLike
from pathlib import Path
from typing import Any

from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import Durability, State
from persistcoll.sqlite.message_statements import STATES
from persistcoll.sqlite.message_store import SQLiteMessageStore
from persistcoll.sqlite.open import DatabaseLocation, open_message_store

__all__ = ["POLICY", "is_consistent", "opened"]

POLICY = MessagePolicy(lease=None, max_attempts=3, backoff=None)


def opened(
    path: str | PathLike[str],
    policy: MessagePolicy = POLICY,
    durability: Durability = "process",
    name: str = "messages",
    **options: Any,
) -> SQLiteMessageStore:
    """Open the message store in this directory."""
    return open_message_store(
        DatabaseLocation(path),
        name=name,
        policy=policy,
        serializer="raw",
        executes_code=False,
        durability=durability,
        **options,
    )


def is_consistent(path: str | PathLike[str], number: int = 1) -> None:
    """Check that the tables of a queue, which no object of this process has open, agree with each other."""
    with contextlib.closing(sqlite3.connect(Path(path, "data.db"))) as connection:

        def rows(text: str) -> list[Any]:
            return sorted(connection.execute(text.replace("#", str(number))).fetchall())

        assert rows("PRAGMA integrity_check") == [("ok",)]
        unfinished = "FROM messages_# WHERE state < 4"
        in_groups = f"{unfinished} AND grp IS NOT NULL"
        assert rows("SELECT topic, grp, n FROM groups_#") == rows(
            f"SELECT topic, grp, count(*) {in_groups} GROUP BY topic, grp"
        )
        # Each group has one head.
        heads = rows(f"SELECT sum(state <> 3) {in_groups} GROUP BY topic, grp")
        assert set(heads) <= {(1,)}, heads
        assert rows("SELECT id FROM messages_# WHERE state = 3 AND grp IS NULL") == []
        counted = "ready, claimed, delayed, blocked, done, dead"
        sums = ", ".join(f"sum(state = {STATES[State(name)]})" for name in counted.split(", "))
        assert rows(
            f"SELECT topic, {counted} FROM topics_#"
            " WHERE ready + claimed + delayed + blocked + done + dead > 0"
        ) == rows(f"SELECT topic, {sums} FROM messages_# GROUP BY topic")
        keys = f"SELECT key, id FROM keys_# WHERE unfinished = 1 EXCEPT SELECT key, id {unfinished}"
        assert rows(keys) == []
        held = "holder IS NOT NULL AND token IS NOT NULL AND delivered IS NOT NULL"
        assert rows(f"SELECT id FROM messages_# WHERE (state = 1) <> ({held})") == []
        free = "holder IS NULL AND token IS NULL AND delivered IS NULL"
        assert rows(f"SELECT id FROM messages_# WHERE (state <> 1) <> ({free})") == []
        assert rows("SELECT id FROM messages_# WHERE (finished IS NULL) <> (state < 4)") == []
        assert rows("SELECT id FROM messages_# WHERE attempts > deliveries OR attempts < 0") == []
