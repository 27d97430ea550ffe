"""Signing keys from the environment and from files: read only from private files, and never shown."""

from __future__ import annotations

import base64
import os
import pickle

import pytest

from persistcoll.serializers import encrypted, key_file, key_from_env, signed

KEY = bytes(range(250, 256)) + b"\n a key of 16"[:10]
WRITTEN = {
    "raw": KEY,
    "hex": KEY.hex().encode() + b"\n",
    "base64": base64.b64encode(KEY)[:10] + b"\n" + base64.b64encode(KEY)[10:] + b"\n",
}

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has neither owner nor mode")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("encoding", WRITTEN)
def test_a_key_file_in_each_encoding(file, encoding):
    file.write_bytes(WRITTEN[encoding])
    wrapped = encrypted("json", key_file(file, encoding=encoding))
    assert encrypted("json", KEY).loads(wrapped.dumps([1])) == [1]


@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_a_variable_in_each_encoding(monkeypatch, encoding):
    monkeypatch.setenv("QUEUE_KEY", WRITTEN[encoding].decode())
    wrapped = encrypted("json", key_from_env("QUEUE_KEY", encoding=encoding))
    assert encrypted("json", KEY).loads(wrapped.dumps([1])) == [1]


def test_a_variable_as_it_is(monkeypatch):
    monkeypatch.setenv("QUEUE_KEY", "passphrase of sorts, é")
    wrapped = signed("json", key_from_env("QUEUE_KEY"))
    assert signed("json", "passphrase of sorts, é".encode()).loads(wrapped.dumps([1])) == [1]


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_an_error_when_the_wrapper_is_made(monkeypatch, value):
    monkeypatch.delenv("QUEUE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("QUEUE_KEY", value)
    source = key_from_env("QUEUE_KEY")
    with pytest.raises(ValueError, match="environment variable 'QUEUE_KEY'"):
        signed("json", source)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o666, 0o610])
def test_a_file_that_is_open_to_others_is_refused(file, mode):
    file.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        signed("json", key_file(file))


@posix
def test_a_file_that_may_only_be_read_is_taken(file):
    file.chmod(0o400)
    assert signed("json", key_file(file)).name == "signed(json)"


def test_a_symbolic_link_is_refused(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(PermissionError, match="symbolic link"):
        signed("json", key_file(link))


@posix
def test_a_link_that_appears_after_the_look_is_refused(file, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(file)
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    with pytest.raises(OSError, match="symbolic links"):
        signed("json", key_file(link))


@posix
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, tmp_path):
        with pytest.raises(PermissionError, match="no regular file"):
            signed("json", key_file(path))


@posix
def test_a_file_of_another_user_is_refused(file, monkeypatch):
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(PermissionError, match="another user"):
        signed("json", key_file(file))


def test_a_missing_file_is_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        signed("json", key_file(tmp_path / "none"))


def test_a_long_file_is_no_key(file):
    file.write_bytes(bytes(4096))
    signed("json", key_file(file))
    file.write_bytes(bytes(4097))
    with pytest.raises(ValueError, match="longer than 4096 bytes"):
        signed("json", key_file(file))


@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_a_key_in_another_encoding_is_refused_and_not_quoted(file, encoding):
    file.write_bytes("héllo secret".encode())
    with pytest.raises(ValueError, match=f"does not hold a key in {encoding}") as caught:
        signed("json", key_file(file, encoding=encoding))
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error)
        assert not isinstance(error, UnicodeDecodeError)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("make", [key_from_env, key_file])
def test_an_unknown_encoding_is_refused(make):
    with pytest.raises(ValueError, match="encoding is 'raw', 'hex' or 'base64'"):
        make("name", encoding="utf-8")


def test_sources_show_where_and_not_what(file, monkeypatch):
    monkeypatch.setenv("QUEUE_KEY", "a secret passphrase")
    assert repr(key_from_env("QUEUE_KEY")) == "key_from_env('QUEUE_KEY', encoding='raw')"
    assert repr(key_file(file, encoding="hex")) == f"key_file({str(file)!r}, encoding='hex')"
    for source in (key_from_env("QUEUE_KEY"), key_file(file)):
        assert pickle.loads(pickle.dumps(source)) == source
        assert b"secret" not in pickle.dumps(source)


def test_a_relative_path_means_the_same_file_from_everywhere(file, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(file.parent)
    source = key_file(file.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert source.read() == KEY
