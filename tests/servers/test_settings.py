"""What of a server endangers promises: it is told once, with the remedy, at the line that opens a collection.

The servers are the tests' own. A test changes a setting while the server runs, and sets it back.
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import persistcoll
from persistcoll import BackendUnavailableError, MessageQueue, PDict, ServerWarning, StorageError
from persistcoll.servers import open as opening
from persistcoll.servers import settings
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.schema import open_collection
from persistcoll.servers.sessions import SERVERS, driver_of
from tests.servers.own_server import OwnServer
from tests.servers.places import CLASSES, KINDS

OPTIONS = {
    POSTGRESQL: ("max_prepared_transactions=2",),
    # The time zone is not that of a machine.
    MYSQL: ("log-bin=bin", "sync-binlog=1", "binlog-format=ROW", "default-time-zone=-09:30"),
}
# By the name: a value that is wrong for a lease of 60 seconds, and whether it endangers only `power`.
WRONG: dict[str, dict[str, tuple[str, bool]]] = {
    POSTGRESQL: {
        "fsync": ("off", True),
        "full_page_writes": ("off", True),
        "synchronous_commit": ("off", True),
        "idle_session_timeout": ("59s", False),
    },
    MYSQL: {
        "innodb_flush_log_at_trx_commit": ("2", True),
        "sync_binlog": ("0", True),
        "binlog_format": ("STATEMENT", False),
        "default_storage_engine": ("MyISAM", False),
        "wait_timeout": ("59", False),
    },
}
OLD = "a transaction"
GONE, REFUSED = BackendUnavailableError("gone"), StorageError("refused")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "operating-servers.rst"


@pytest.fixture(scope="module", params=KINDS)
def server(request) -> Iterator[OwnServer]:
    server = OwnServer(request.param, *OPTIONS[request.param])
    try:
        for which in ("dict", "messages", "acks"):
            opened(server, which).close()
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def unchecked(monkeypatch) -> None:
    """Let the process have checked nothing: two servers may have had the same port."""
    monkeypatch.setattr(settings, "_checked", {})


@pytest.fixture
def any_age(monkeypatch) -> None:
    """Let each transaction be an old one."""
    monkeypatch.setattr(settings, "OLD", -1.0)


def opened(server: OwnServer, which: str = "dict", url: str = "", **options: Any) -> Any:
    url = url or server.address.shown
    if which == "acks":
        return getattr(persistcoll, f"{CLASSES[server.kind]}AckQueue")("acks", url, **options)
    return {"dict": PDict, "messages": MessageQueue}[which](url, which, **options)


def caught(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """Return the warnings that opening a collection gives, and close it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call().close()
    assert {warning.category for warning in found} <= {ServerWarning}
    return found


def texts(server: OwnServer, *arguments: str, **options: Any) -> list[str]:
    return [str(warning.message) for warning in caught(lambda: opened(server, *arguments, **options))]


def told(server: OwnServer, *arguments: str, **options: Any) -> list[str]:
    """Return of what is told when a collection is opened."""
    found = [re.search(rf" has ({OLD}|\w+)", text) for text in texts(server, *arguments, **options)]
    return [match[1] if match else "" for match in found]


def anew(server: OwnServer) -> None:
    """Let the next opening see which transactions are open.

    InnoDB shows for a tenth of a second after each look what it saw at the first one.
    """
    settings._checked.clear()
    if server.kind == MYSQL:
        threading.Event().wait(0.15)


@contextmanager
def setting(server: OwnServer, **values: str) -> Iterator[None]:
    """Return a context manager with these settings of the server."""
    names = list(values)
    before = shown(server, names)
    if server.kind == MYSQL:
        for name, value in values.items():
            server.run(f"SET GLOBAL {name} = {value}")
        try:
            yield
        finally:
            for name, value in zip(names, before, strict=True):
                server.run(f"SET GLOBAL {name} = {value}")
        return
    for name, value in values.items():
        server.run(f"ALTER SYSTEM SET {name} = '{value}'")
    try:
        reload(server, names, list(values.values()))
        yield
    finally:
        server.run("ALTER SYSTEM RESET ALL")
        reload(server, names, before)


def shown(server: OwnServer, names: list[str]) -> list[str]:
    """Return what new sessions have."""
    form = "@@GLOBAL.{}" if server.kind == MYSQL else "current_setting('{}')"
    return [str(value) for value in server.run("SELECT " + ", ".join(map(form.format, names)))[0]]


def reload(server: OwnServer, names: list[str], expected: list[str]) -> None:
    """Let PostgreSQL read its settings, and wait until new sessions have them."""
    server.run("SELECT pg_reload_conf()")
    until, pause = time.monotonic() + 30, threading.Event()
    while (found := shown(server, names)) != expected:
        assert time.monotonic() < until, (found, expected)
        pause.wait(0.005)


@contextmanager
def user(server: OwnServer, rights: str) -> Iterator[str]:
    """Return a context manager with the URL of a user who has these rights, with a password."""
    if server.kind == MYSQL:
        server.run("CREATE USER ann@'%' IDENTIFIED BY 'hidden'")
        server.run(f"GRANT {rights} TO ann@'%'")
    else:
        server.run("CREATE ROLE ann LOGIN")
        server.run(f"GRANT {rights} TO ann")
    scheme, _, rest = server.address.shown.partition("://")
    try:
        yield f"{scheme}://ann:hidden@{rest.partition('@')[2]}"
    finally:
        if server.kind == POSTGRESQL:
            server.run("DROP OWNED BY ann")
        server.run("DROP USER ann")


@contextmanager
def transaction(server: OwnServer) -> Iterator[Any]:
    """Return a context manager with a session that has changed something in a transaction, which is open."""
    with closing(driver_of(server.kind).connect(server.address, 5.0, True)) as session:
        session.run("BEGIN")
        session.run("UPDATE pc_collections SET puts = puts + 1 WHERE name = 'dict'")
        yield session


def test_a_server_with_the_usual_settings_tells_nothing(server):
    for which in ("dict", "messages", "acks"):
        for durability in ("power", "process"):
            settings._checked.clear()
            assert told(server, which, durability=durability) == []


def test_a_wrong_setting_alone_is_told_once_for_each_durability(server):
    for name, (value, of_power) in WRONG[server.kind].items():
        settings._checked.clear()
        with setting(server, **{name: value}):
            assert [told(server, "messages") for _ in range(2)] == [[name], []]
            process = [told(server, "messages", durability="process") for _ in range(2)]
        assert process == [[] if of_power else [name], []]


def test_several_wrong_settings_are_told_one_by_one(server):
    wrong = {name: value for name, (value, _) in WRONG[server.kind].items()}
    with setting(server, **wrong):
        assert sorted(told(server, "messages")) == sorted(wrong)


def test_the_text_names_the_server_the_value_and_the_remedy_and_no_password(server):
    name, (value, _) = next(iter(WRONG[server.kind].items()))
    rights = "ALL ON *.*" if server.kind == MYSQL else "postgres"
    with setting(server, **{name: value}), user(server, rights) as url:
        (text,) = texts(server, url=url)
    assert text.startswith(f"{url.replace(':hidden', '')} has {name} = '{value}': a power cut ")
    assert "; set it to " in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("which", "options", "seconds"),
    [
        ("dict", {}, 30),
        ("messages", {"lease": 90.0}, 90),
        ("messages", {"lease": 5.0}, 30),
        ("acks", {"patience": 40.0}, 40),
        ("acks", {"patience": 40.0, "lease": 50.0}, 50),
    ],
)
def test_an_idle_timeout_is_too_short_below_the_lease_and_the_patience(server, which, options, seconds):
    name = list(WRONG[server.kind])[-1]
    unit = "" if server.kind == MYSQL else "s"
    with setting(server, **{name: f"{seconds}{unit}"}):
        assert told(server, which, **options) == []
    settings._checked.clear()
    with setting(server, **{name: f"{seconds - 1}{unit}"}):
        (text,) = texts(server, which, **options)
    assert f"for {seconds} seconds" in text


@pytest.mark.parametrize("server", [MYSQL], indirect=True)
def test_what_is_told_of_the_format_of_the_binary_log_holds(server):
    with setting(server, binlog_format="STATEMENT"):
        with pytest.warns(ServerWarning, match="the server refuses"):
            pairs = opened(server)
        with pairs, pytest.raises(StorageError, match="BINLOG_FORMAT"):
            pairs["a"] = 1


def test_a_server_that_may_write_half_a_page_is_told():
    server = OwnServer(MYSQL, "skip-innodb-doublewrite")
    try:
        assert told(server) == ["innodb_doublewrite"]
        assert told(server, durability="process") == []
        server.stop()
        # Without a binary log nothing of it counts.
        server.start("innodb-doublewrite=ON", "sync-binlog=0", "binlog-format=STATEMENT")
        settings._checked.clear()
        assert told(server) == []
    finally:
        server.close()


@pytest.mark.parametrize("server", [POSTGRESQL], indirect=True)
def test_several_hosts_whose_commits_wait_for_no_standby_are_told(server):
    host = server.address.shown.partition("@")[2].partition("/")[0]
    url = server.address.shown.replace(host, f"{host},{host}")
    assert told(server, url=url) == ["synchronous_standby_names"]
    assert told(server, url=url, durability="process") == []
    settings._checked.clear()
    # Without the second setting the commits that make a collection would wait for ever.
    with setting(server, synchronous_standby_names="ANY 1 (*)", synchronous_commit="local"):
        assert told(server) == []
        assert told(server, url=url) == ["synchronous_commit"]
    settings._checked.clear()
    with setting(server, synchronous_commit="local"):
        assert told(server, url=url) == ["synchronous_standby_names"]
    settings._checked.clear()
    with setting(server, synchronous_standby_names="ANY 1 (*)", synchronous_commit="off"):
        assert told(server, url=url) == ["synchronous_commit"]


def test_an_old_transaction_is_told_with_the_statement_that_ends_it(server, any_age):
    for durability in ("power", "process"):
        with transaction(server) as session:
            anew(server)
            ((number,),) = session.run(
                "SELECT connection_id()" if server.kind == MYSQL else "SELECT pg_backend_pid()"
            ).rows
            (text,) = texts(server, durability=durability)
    ending = f"KILL {number}" if server.kind == MYSQL else f"SELECT pg_terminate_backend({number})"
    assert "has a transaction that began 0.0 hours ago" in text
    assert text.endswith(f": {ending}")
    anew(server)
    assert told(server) == []


def test_a_young_transaction_is_not_told(server):
    with transaction(server):
        assert told(server) == []


@pytest.mark.parametrize("server", [POSTGRESQL], indirect=True)
def test_a_transaction_that_holds_up_no_vacuum_is_not_told(server, any_age):
    session: Any
    with closing(driver_of(server.kind).connect(server.address, 5.0, True)) as session:
        for level, expected in ("READ COMMITTED", []), ("REPEATABLE READ", [OLD]):
            settings._checked.clear()
            # As a script, because otherwise the last statement of a session keeps its snapshot.
            session._libpq.exec_(
                f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pc_collections".encode()
            )
            assert told(server) == expected
            session._libpq.exec_(b"ROLLBACK")


def test_a_prepared_transaction_is_told_after_its_session_has_ended(server, any_age):
    change = "UPDATE pc_collections SET puts = puts + 1 WHERE name = 'acks'"
    prepare = ["BEGIN", change, "PREPARE TRANSACTION 'it''s'"]
    ending = expected = "ROLLBACK PREPARED 'it''s'"
    if server.kind == MYSQL:
        prepare = ["XA START 'x'", change, "XA END 'x'", "XA PREPARE 'x'"]
        ending, expected = "XA ROLLBACK 'x'", "XA ROLLBACK of what XA RECOVER lists"
    with closing(driver_of(server.kind).connect(server.address, 5.0, True)) as session:
        for text in prepare:
            session.run(text)
    anew(server)
    (text,) = texts(server)
    assert text.endswith(f": {expected}")
    server.run(ending)
    anew(server)
    assert told(server) == []


def test_a_user_without_rights_is_told_what_the_user_may_see(server, any_age):
    name, value = ("sync_binlog", "0") if server.kind == MYSQL else ("fsync", "off")
    rights = "ALL ON test.*" if server.kind == MYSQL else "ALL ON ALL TABLES IN SCHEMA public"
    with setting(server, **{name: value}), user(server, rights) as url, transaction(server):
        anew(server)
        assert told(server, url=url, create=False) == [name]
        if server.kind == POSTGRESQL:
            server.run("REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
            try:
                settings._checked.clear()
                assert told(server, url=url, create=False) == [name]
            finally:
                server.run("GRANT SELECT ON pg_stat_activity TO PUBLIC")


def test_an_opening_checks_in_one_trip_and_the_next_one_in_none(server, trips):
    opened(server).close()
    first = len(trips)
    trips.clear()
    opened(server).close()
    assert first - len(trips) == 1, trips


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_goes_before_the_check_is_an_error_and_is_checked_later(kind, monkeypatch):
    server = OwnServer(kind)

    def open_and_kill(*arguments: Any) -> Any:
        found = open_collection(*arguments)
        server.kill()
        return found

    try:
        monkeypatch.setattr(opening, "open_collection", open_and_kill)
        with pytest.raises(BackendUnavailableError):
            opened(server, timeout=0.5)
        assert SERVERS._servers == settings._checked == {}
    finally:
        server.close()


@pytest.mark.parametrize("errors", [[GONE], [REFUSED, GONE], [REFUSED, REFUSED, GONE]])
def test_a_server_that_has_gone_is_asked_no_more(errors):
    left = [*errors]

    def repeat(work: Any) -> Any:
        raise left.pop(0)

    stub: Any = SimpleNamespace(driver=driver_of(POSTGRESQL), repeat=repeat)
    with pytest.raises(BackendUnavailableError):
        settings._ask(stub)
    assert left == []


@pytest.mark.parametrize("which", ["dict", "messages", "acks"])
def test_a_warning_that_is_raised_opens_nothing_and_is_raised_again(server, which):
    name, (value, _) = next(iter(WRONG[server.kind].items()))
    with setting(server, **{name: value}):
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(ServerWarning, match=name):
                    opened(server, which)
            assert SERVERS._servers == {}
        assert [told(server, which) for _ in range(2)] == [[name], []]


def test_a_warning_is_ignored_by_its_text_alone(server):
    (ignored, (first, _)), (name, (second, _)) = list(WRONG[server.kind].items())[:2]
    with setting(server, **{ignored: first, name: second}), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", f".* has {ignored} ", ServerWarning)
        opened(server).close()
    assert [f"has {name} " in str(warning.message) for warning in found] == [True]


def test_a_warning_names_the_line_of_the_program(server):
    name, (value, _) = next(iter(WRONG[server.kind].items()))
    acks = getattr(persistcoll, f"{CLASSES[server.kind]}AckQueue")
    url = server.address.shown
    calls: list[Callable[[], Any]] = [
        lambda: PDict(url, "dict"),
        lambda: PDict[str, int](url, "dict"),
        lambda: MessageQueue(url, "messages"),
        lambda: acks("acks", url),
        lambda: acks[int]("acks", url),
    ]
    with setting(server, **{name: value}):
        for call in calls:
            settings._checked.clear()
            (warning,) = caught(call)
            assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno)
        settings._checked.clear()
        with pytest.warns(ServerWarning, match=name) as found:
            persistcoll.put("letters", "x", url=url)
    assert [warning.filename for warning in found] == [__file__]


def test_two_threads_that_open_at_once_are_told_once(server):
    name, (value, _) = next(iter(WRONG[server.kind].items()))
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        opened(server).close()

    with setting(server, **{name: value}), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 1


@pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")
def test_the_page_on_servers_has_each_check():
    page = PAGE.read_text("utf-8")
    _, _, section = page.partition("What is checked at opening")
    names = {check.name for checks in settings.CHECKS.values() for check in checks}
    assert [name for name in sorted(names) if f"``{name}``" not in section] == []
