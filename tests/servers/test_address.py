"""Where a server is: URLs, keywords, the environment, and passwords that are never shown."""

from __future__ import annotations

import pickle

import pytest

from persistcoll.servers.address import MYSQL, POSTGRESQL, Address, address_of

SECRET = "p@ss/w:rd#%"
QUOTED = "p%40ss%2Fw%3Ard%23%25"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            f"postgresql://ann:{QUOTED}@host:5433,host2/shop?sslmode=verify-full&target_session_attrs=read-write",
            Address(
                POSTGRESQL,
                (("host", 5433), ("host2", 5432)),
                "ann",
                SECRET,
                "shop",
                (("sslmode", "verify-full"), ("target_session_attrs", "read-write")),
            ),
        ),
        ("postgres://h/d", Address(POSTGRESQL, (("h", 5432),), database="d")),
        ("postgresql+psycopg://h", Address(POSTGRESQL, (("h", 5432),))),
        ("postgresql:///d", Address(POSTGRESQL, (("localhost", 5432),), database="d")),
        ("postgresql://%2Fvar%2Frun/d", Address(POSTGRESQL, (("/var/run", 5432),), database="d")),
        (
            "postgresql://[::1]:6000,[fe80::1]/d",
            Address(POSTGRESQL, (("::1", 6000), ("fe80::1", 5432)), database="d"),
        ),
        ("mysql://root:@h/d%20e", Address(MYSQL, (("h", 3306),), "root", "", "d e")),
        ("mariadb://h:3307/d", Address(MYSQL, (("h", 3307),), database="d")),
        (
            "mysql+pymysql://h/d?ssl_ca=/a",
            Address(MYSQL, (("h", 3306),), database="d", options=(("ssl_ca", "/a"),)),
        ),
    ],
)
def test_a_url_names_an_address(url, wanted):
    assert Address.parse(url) == wanted
    assert Address.parse(wanted.shown) == Address(**{**vars(wanted), "password": None})


@pytest.mark.parametrize(
    "url",
    [
        "jobs.db",
        "",
        f"sqlite://ann:{SECRET}@h/d",
        f"postgresql://ann:{SECRET}@h/d",
        f"postgresql://ann:{QUOTED}@h:port/d",
        f"postgresql://ann:{QUOTED}@h:0/d",
        f"postgresql://ann:{QUOTED}@h:65536/d",
        f"postgresql://ann:{QUOTED}@h/d?colour=red",
        f"mysql://ann:{QUOTED}@h/d?sslmode=require",
    ],
)
def test_a_wrong_url_is_refused_and_not_quoted(url):
    with pytest.raises(ValueError, match=r"URL|port|option") as raised:
        Address.parse(url)
    assert "p@ss" not in str(raised.value)
    assert QUOTED not in str(raised.value)


@pytest.mark.parametrize("kind", [POSTGRESQL, MYSQL])
def test_a_password_is_nowhere(kind, monkeypatch):
    address = address_of(kind, f"{kind}://ann:{QUOTED}@h/d")
    assert address.password == SECRET
    for text in (repr(address), str(address), address.shown, f"{address}"):
        assert SECRET not in text
        assert QUOTED not in text
    pickled = pickle.dumps(address)
    assert SECRET.encode() not in pickled
    monkeypatch.delenv("PERSISTCOLL_PASSWORD", raising=False)
    assert pickle.loads(pickled).password is None
    monkeypatch.setenv("PERSISTCOLL_PASSWORD", SECRET)
    assert pickle.loads(pickled) == address


def test_the_secret_of_a_key_is_nowhere():
    address = Address.parse("postgresql://h/d?sslkey=/k&sslpassword=hidden")
    assert ("sslpassword", "hidden") in address.options
    assert "hidden" not in f"{address!r} {address}"
    assert b"hidden" not in pickle.dumps(address)


def test_the_environment_says_what_the_arguments_leave_open():
    environment = {
        "PERSISTCOLL_HOST": "h,h2",
        "PERSISTCOLL_PORT": "7000",
        "PERSISTCOLL_DB": "d",
        "PERSISTCOLL_USER": "u",
        "PERSISTCOLL_PASSWORD": "s",
    }
    found = address_of(POSTGRESQL, environment=environment)
    assert found == Address(POSTGRESQL, (("h", 7000), ("h2", 7000)), "u", "s", "d")
    found = address_of(MYSQL, host="x", port=1, user="v", password="t", database="e", environment=environment)
    assert found == Address(MYSQL, (("x", 1),), "v", "t", "e")
    environment["PERSISTCOLL_URL"] = "mysql://ann@u/d"
    assert address_of(None, environment=environment) == Address(MYSQL, (("u", 3306),), "ann", "s", "d")
    assert address_of(MYSQL, host="x", environment=environment).hosts == (("x", 7000),)
    assert address_of(None, "mysql://bob:own@u/d", environment=environment).password == "own"
    assert address_of(None, "mysql://bob@u/d", password="given", environment=environment).password == "given"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": MYSQL, "url": "postgresql://h/d"}, "needs a URL like mysql"),
        ({"kind": None, "url": "mysql://h/d", "port": 1}, "'port' cannot be given beside it"),
        ({"kind": MYSQL, "url": "mysql://h/d", "user": "u"}, "'user' cannot be given beside it"),
        ({"kind": MYSQL}, "no server is named"),
        ({"kind": None}, "no server is named"),
        ({"kind": None, "port": 3306}, "no server is named"),
        ({"kind": MYSQL, "host": "h", "port": 1 << 16}, "port"),
        ({"kind": MYSQL, "host": "h", "port": True}, "port"),
    ],
)
def test_what_names_no_server_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        address_of(**arguments, environment={})


@pytest.mark.parametrize(("port", "kind"), [(None, POSTGRESQL), (3306, MYSQL), (3307, POSTGRESQL)])
def test_without_a_url_the_port_tells_the_kind(port, kind):
    found = address_of(None, host="h", port=port, environment={})
    assert found == Address(kind, (("h", port or 5432),))
    if port is not None:
        assert address_of(None, host="h", environment={"PERSISTCOLL_PORT": str(port)}) == found


def test_an_argument_beside_the_url_of_the_environment_is_refused():
    with pytest.raises(ValueError, match="'user' needs 'host' beside it"):
        address_of(MYSQL, user="u", environment={"PERSISTCOLL_URL": "mysql://h/d"})
    with pytest.raises(TypeError, match="'host' must be a str"):
        address_of(MYSQL, host=7)  # type: ignore[arg-type]
