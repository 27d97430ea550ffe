"""Where a server is, and as whom to connect: from a URL, from keywords, or from the environment.

A password is never shown. It is in no ``repr``, in no message and in no pickle. An address that was unpickled
takes the password from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

__all__ = ["MYSQL", "OPTIONS", "POSTGRESQL", "Address", "address_of"]

POSTGRESQL = "postgresql"
MYSQL = "mysql"
_SCHEMES = {
    "postgresql": POSTGRESQL,
    "postgres": POSTGRESQL,
    "postgresql+psycopg": POSTGRESQL,
    "mysql": MYSQL,
    "mariadb": MYSQL,
    "mysql+pymysql": MYSQL,
    "mariadb+pymysql": MYSQL,
}
_PORTS = {POSTGRESQL: 5432, MYSQL: 3306}
OPTIONS = {
    POSTGRESQL: frozenset(
        "channel_binding connect_timeout gssencmode keepalives keepalives_count keepalives_idle"
        " keepalives_interval load_balance_hosts passfile require_auth service sslcert sslcrl sslkey"
        " sslmode sslnegotiation sslpassword sslrootcert target_session_attrs tcp_user_timeout".split()
    ),
    MYSQL: frozenset(
        "connect_timeout ssl_ca ssl_cert ssl_key ssl_verify_cert ssl_verify_identity unix_socket".split()
    ),
}
"""The options of a connection that an address may have, by the kind of the server."""
_SECRET_OPTIONS = frozenset({"sslpassword"})
_EXAMPLE = {
    POSTGRESQL: "postgresql://user@host:5432/database",
    MYSQL: "mysql://user@host:3306/database",
}


@dataclass(frozen=True)
class Address:
    """A database on a server.

    >>> Address.parse("postgresql://ann:p%40ss@db1:5433,db2/shop?sslmode=verify-full")
    <postgresql://ann@db1:5433,db2/shop?sslmode=verify-full>

    :ivar kind: ``POSTGRESQL`` or ``MYSQL``.
    :ivar hosts: the hosts and ports, which are tried in this order; a host that begins with ``/`` is the
        directory of a socket.
    :ivar database: its name; ``None``: the driver's default.
    :ivar options: further options of the connection, by name.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return the address that a URL names.

        :raise ValueError: it is no such URL. The message does not quote it, because it may hold a password.
        """
        scheme, separator, rest = url.partition("://")
        kind = _SCHEMES.get(scheme.lower())
        if not separator or kind is None:
            raise ValueError(f"the URL of a server looks like {' or '.join(_EXAMPLE.values())}")
        rest, _, fragment = rest.partition("#")
        if fragment:
            raise ValueError("the URL of a server has no '#'; quote one in a password as '%23'")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        credentials, at, places = authority.rpartition("@")
        user, colon, password = credentials.partition(":")
        return cls(
            kind,
            _hosts(places, kind),
            unquote(user) if at and user else None,
            unquote(password) if colon else None,
            unquote(path) or None,
            _options(kind, parse_qsl(query, keep_blank_values=True)),
        )

    @property
    def shown(self) -> str:
        """The URL without a password."""
        user = "" if self.user is None else quote(self.user, safe="") + "@"
        port = _PORTS[self.kind]
        hosts = ",".join(
            _shown_host(host) + ("" if each == port else f":{each}") for host, each in self.hosts
        )
        database = "" if self.database is None else quote(self.database, safe="")
        options = "&".join(
            f"{name}={quote(value, safe='/')}" for name, value in self.options if name not in _SECRET_OPTIONS
        )
        return f"{self.kind}://{user}{hosts}/{database}" + (f"?{options}" if options else "")

    def __repr__(self) -> str:
        return f"<{self.shown}>"

    def __str__(self) -> str:
        return self.shown

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["password"] = None
        values["options"] = tuple(pair for pair in self.options if pair[0] not in _SECRET_OPTIONS)
        return _unpickled, (values,)


def _unpickled(values: dict[str, Any]) -> Address:
    return Address(**{**values, "password": os.environ.get("PERSISTCOLL_PASSWORD")})


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _hosts(places: str, kind: str) -> tuple[tuple[str, int], ...]:
    found = []
    for place in places.split(","):
        if place.startswith("["):
            host, _, rest = place[1:].partition("]")
            port = rest.removeprefix(":")
        else:
            host, _, port = place.partition(":")
        found.append((unquote(host) or "localhost", _port(port, kind)))
    return tuple(found)


def _port(port: Any, kind: str) -> int:
    if port in (None, ""):
        return _PORTS[kind]
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = 0
    if isinstance(port, bool) or not 0 < number < 1 << 16:
        raise ValueError("the port of a server is a number from 1 to 65535")
    return number


def _options(kind: str, pairs: Any) -> tuple[tuple[str, str], ...]:
    for name, _ in pairs:
        if name not in OPTIONS[kind]:
            raise ValueError(
                f"{name!r} is no option of a connection; these are: {', '.join(sorted(OPTIONS[kind]))}"
            )
    return tuple(sorted((name, str(value)) for name, value in pairs))


def address_of(
    kind: str | None,
    url: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    database: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Address:
    """Return the address that these arguments name; what they leave open comes from the environment.

    A URL stands for itself: no other argument and no variable changes it, except that a password may be given
    beside it. Without a URL and without a host it is ``PERSISTCOLL_URL``, or otherwise
    ``PERSISTCOLL_HOST``, ``PERSISTCOLL_PORT``, ``PERSISTCOLL_DB``, ``PERSISTCOLL_USER`` and
    ``PERSISTCOLL_PASSWORD``.

    >>> address_of("mysql", host="db", user="ann", password="secret", database="shop", environment={})
    <mysql://ann@db/shop>

    :param kind: what the server must be; ``None``: what the URL says. Without a URL it is MySQL if the port
        is 3306, and otherwise PostgreSQL.
    :raise TypeError: an argument has the wrong type.
    :raise ValueError: the arguments contradict each other or the class, or do not name a server.
    """
    given = {"host": host, "user": user, "password": password, "database": database, "url": url}
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name!r} must be a str, not {type(value).__name__}")
    keywords = [name for name in ("host", "user", "database") if given[name] is not None]
    keywords += ["port"] * (port is not None)
    if url is not None and keywords:
        raise ValueError(f"the URL says all of it, so {keywords[0]!r} cannot be given beside it")
    if url is None and host is None:
        url = environment.get("PERSISTCOLL_URL")
        if url is not None and keywords:
            raise ValueError(f"{keywords[0]!r} needs 'host' beside it, because PERSISTCOLL_URL is set")
    if url is not None:
        address = Address.parse(url)
        if kind is not None and address.kind != kind:
            raise ValueError(f"this class needs a URL like {_EXAMPLE[kind]}, and was given {address}")
        secret = password if password is not None else environment.get("PERSISTCOLL_PASSWORD")
        if address.password is None and secret is not None:
            address = replace(address, password=secret)
        return address
    of = {
        name: given[name] if given[name] is not None else environment.get(f"PERSISTCOLL_{variable}")
        for name, variable in (
            ("host", "HOST"),
            ("user", "USER"),
            ("password", "PASSWORD"),
            ("database", "DB"),
        )
    }
    if of["host"] is None:
        like = " or ".join(_EXAMPLE.values()) if kind is None else _EXAMPLE[kind]
        raise ValueError(f"no server is named: give a URL like {like}, or 'host', or set PERSISTCOLL_URL")
    number = _port(port if port is not None else environment.get("PERSISTCOLL_PORT"), kind or POSTGRESQL)
    if kind is None:
        kind = MYSQL if number == _PORTS[MYSQL] else POSTGRESQL
    hosts = tuple((each.strip(), number) for each in of["host"].split(","))
    return Address(kind, hosts, of["user"], of["password"], of["database"])
