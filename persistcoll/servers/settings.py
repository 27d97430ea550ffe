"""What of a server endangers the promises of this library, told as warnings when a collection is opened.

A process checks each address once for each durability. What the server does not have, and what it does not
show to this user, is left out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from persistcoll.errors import BackendUnavailableError, ServerWarning, StorageError
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.schema import text_of

if TYPE_CHECKING:
    from persistcoll.servers.sessions import Server, Session

__all__ = ["CHECKS", "OLD", "Check", "Found", "warn_of_settings"]

OLD = 3600.0
"""Seconds that a transaction is open before it is told."""

# By the address without its password, and whether a power cut counts. One step of the dict decides which of
# several threads checks. A lock could be held for ever in a forked child.
_checked: dict[tuple[str, bool], object] = {}


class Found(NamedTuple):
    """What is known of a server.

    :ivar settings: the values by name, without those that the server does not have.
    :ivar hosts: how many of them the address names.
    :ivar idle: the seconds that a connection may idle while an item is worked on.
    """

    settings: Mapping[str, str]
    hosts: int
    idle: float

    def has(self, name: str, *values: str) -> bool:
        """Tell whether a setting has one of these values, in small letters."""
        return self.settings.get(name, "unknown").lower() in values

    def ends_idle(self, name: str, per_second: int) -> bool:
        """Tell whether a setting ends a connection before an item must be settled.

        :param per_second: how many of its units are a second.
        """
        return 0 < int(self.settings.get(name, 0)) < self.idle * per_second


class Check(NamedTuple):
    """One setting, when it is wrong, and what to tell then. The texts may name ``{idle}``."""

    name: str
    is_wrong: Callable[[Found], bool]
    effect: str
    remedy: str
    of_power: bool = True
    """Whether it endangers only what ``durability="power"`` promises beyond ``"process"``."""


_FAILOVER = "the URL names several hosts, and one that takes over may lack the last commits"
_RECONNECTS = "the server closes connections while an item is worked on for {idle:g} seconds"
_WHOLE_PAGES = "unless the storage itself writes whole pages, as that of ZFS and of Aurora does"

CHECKS: Mapping[str, tuple[Check, ...]] = {
    POSTGRESQL: (
        Check(
            "fsync",
            lambda found: found.has("fsync", "off"),
            "a power cut may damage the whole database",
            "set it to 'on'",
        ),
        Check(
            "full_page_writes",
            lambda found: found.has("full_page_writes", "off"),
            "a power cut in the middle of a write may damage a table",
            f"set it to 'on', {_WHOLE_PAGES}",
        ),
        Check(
            "synchronous_commit",
            lambda found: found.has("synchronous_commit", "off"),
            "a power cut undoes the last commits, which durability='power' promises to keep",
            "set it to 'on' for this user, or open the collection with durability='process'",
        ),
        Check(
            "synchronous_commit",
            lambda found: (
                found.hosts > 1
                and found.has("synchronous_commit", "local")
                and not found.has("synchronous_standby_names", "")
            ),
            f"no commit waits for a standby; {_FAILOVER}",
            "set it to 'on' for this user",
        ),
        Check(
            "synchronous_standby_names",
            lambda found: (
                found.hosts > 1
                and found.has("synchronous_standby_names", "")
                and not found.has("in_hot_standby", "on")  # whose commits are those of the primary
            ),
            f"no commit waits for a standby; {_FAILOVER}",
            "name the standbys there, such as 'ANY 1 (*)'",
        ),
        Check(
            "idle_session_timeout",
            lambda found: found.ends_idle("idle_session_timeout", 1000),
            f"{_RECONNECTS}, and the next call connects anew",
            "set it to 0 for this user, or to more than that; it is in milliseconds",
            of_power=False,
        ),
    ),
    MYSQL: (
        Check(
            "innodb_flush_log_at_trx_commit",
            lambda found: found.has("innodb_flush_log_at_trx_commit", "0", "2"),
            "a power cut undoes the commits of the last second, which durability='power' promises to keep",
            "set it to 1, or open the collection with durability='process'",
        ),
        Check(
            "sync_binlog",
            lambda found: found.has("log_bin", "on", "1") and not found.has("sync_binlog", "1", "unknown"),
            "a power cut may undo the last commits, or leave them out of the binary log",
            "set it to 1, or switch the binary log off",
        ),
        Check(
            "innodb_doublewrite",
            # The last one finds pages of which a part was written, and does not repair them.
            lambda found: found.has("innodb_doublewrite", "off", "0", "detect_only"),
            "a power cut in the middle of a write may damage a table",
            f"set it to ON, {_WHOLE_PAGES}",
        ),
        Check(
            "binlog_format",
            lambda found: found.has("log_bin", "on", "1") and found.has("binlog_format", "statement"),
            "the server refuses each change at READ COMMITTED, the isolation level of this library",
            "set it to ROW",
            of_power=False,
        ),
        Check(
            # The tables of this library name their engine.
            "default_storage_engine",
            lambda found: found.has("default_storage_engine", "myisam", "aria", "memory"),
            "a table that a program makes there does not commit or roll back together with an item",
            "set it to InnoDB",
            of_power=False,
        ),
        Check(
            "wait_timeout",
            # Where there is no other timeout, the sessions of this library set this one themselves.
            lambda found: "idle_transaction_timeout" in found.settings and found.ends_idle("wait_timeout", 1),
            f"{_RECONNECTS}, and rolls a block of receive() or transaction() back that lasts longer",
            "set it to more than that, such as the default of 28800",
            of_power=False,
        ),
    ),
}
"""What is checked, by the kind of the server, besides old transactions."""


def warn_of_settings(server: Server, lease: float | None) -> None:
    """Warn of everything that is wrong, if this process has not done so at this address.

    What is raised in place of a warning is raised again at the next opening.

    :param lease: that of the collection, if it has one.
    :raise BackendUnavailableError: the server cannot be reached.
    """
    key, mine = (server.address.shown, server.power), object()
    if _checked.setdefault(key, mine) is not mine:
        return
    try:
        for message in _wrong(server, max(lease or 0.0, server.patience)):
            warnings.warn(message, ServerWarning, stacklevel=_user_level())
    except BaseException:
        _checked.pop(key, None)
        raise


def _wrong(server: Server, idle: float) -> Iterator[str]:
    """Give the text of each warning."""
    settings, old = _ask(server)
    values = {text_of(name).lower(): text_of(value) for name, value in settings}
    found = Found(values, len(server.address.hosts), idle)
    for check in CHECKS[server.address.kind]:
        if (server.power or not check.of_power) and check.is_wrong(found):
            effect = check.effect.format(idle=idle)
            yield f"{server.address} has {check.name} = {values[check.name]!r}: {effect}; {check.remedy}"
    for seconds, ending in old:
        yield (
            f"{server.address} has a transaction that began {seconds / 3600:.1f} hours ago: until its end the"
            f" server keeps all versions of rows, and calls become slower; this ends it: {text_of(ending)}"
        )


def _ask(server: Server) -> list[list[Any]]:
    """Return names and values of settings, and the oldest transaction, with nothing for what is refused."""
    dialect = server.driver.dialect
    texts = (dialect.select_settings, dialect.select_old_transaction)

    def ask(session: Session, *texts: str) -> list[list[Any]]:
        sent = [session.defer(text, seconds=OLD) for text in texts]
        session.flush()
        return [each.rows for each in sent]

    def ask_one(text: str) -> list[Any]:
        try:
            return server.repeat(lambda session: ask(session, text))[0]
        except BackendUnavailableError:
            raise
        except StorageError:
            return []

    try:
        return server.repeat(lambda session: ask(session, *texts))
    except BackendUnavailableError:
        raise
    except StorageError:  # A refusal of one statement takes the result of the other one with it.
        return [ask_one(text) for text in texts]


def _user_level() -> int:
    """Return the ``stacklevel`` by which the caller of this function warns the caller of the library."""
    level = 1
    frame = sys._getframe(1)
    # `Queue[int]("jobs")` makes its object in a function of typing.
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("persistcoll", "typing"):
        frame = frame.f_back
        level += 1
    return level
