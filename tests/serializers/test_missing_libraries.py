"""A library that is not installed, or too old, is an error that names the pip command."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest

import persistcoll.serializers
from persistcoll.errors import SerializerError, SerializerMissingError
from persistcoll.serializers import encrypted, resolve

LIBRARIES = [("msgpack", "msgpack", "msgpack"), ("cbor", "cbor2", "cbor")]


@pytest.fixture
def forget(monkeypatch):
    """Let a serializer's module be imported anew, and restore everything in the end."""

    def forget(name):
        full = f"persistcoll.serializers.{name}"
        # The package holds it as an attribute, which a new import would replace.
        monkeypatch.setattr(persistcoll.serializers, name, importlib.import_module(full))
        monkeypatch.delitem(sys.modules, full)

    return forget


@pytest.mark.parametrize(("name", "library", "extra"), LIBRARIES)
def test_a_missing_library_names_the_pip_command(name, library, extra, forget, monkeypatch):
    forget(name)
    monkeypatch.setitem(sys.modules, library, None)
    for ask in (resolve, lambda name: importlib.import_module(f"persistcoll.serializers.{name}")):
        with pytest.raises(SerializerMissingError) as caught:
            ask(name)
        assert f"pip install 'persistcoll[{extra}]'" in str(caught.value)
        assert isinstance(caught.value, ImportError)
        assert isinstance(caught.value, SerializerError)


def test_a_missing_library_is_that_error_at_the_attribute_too(forget, monkeypatch):
    """Programs written for persist-queue use ``serializers.cbor2``."""
    for alias, (name, library, extra) in {"msgpack": LIBRARIES[0], "cbor2": LIBRARIES[1]}.items():
        for module in dict.fromkeys((alias, name)):  # the alias imports the other one
            forget(module)
            monkeypatch.delattr(persistcoll.serializers, module)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(SerializerMissingError, match=rf"pip install 'persistcoll\[{extra}\]'"):
            getattr(persistcoll.serializers, alias)


def test_what_is_no_serializer_is_no_attribute():
    assert not hasattr(persistcoll.serializers, "yaml")
    with pytest.raises(ImportError, match="yaml"):
        exec("from persistcoll.serializers import yaml")
    assert set(persistcoll.serializers.__all__) <= set(dir(persistcoll.serializers))


@pytest.mark.parametrize(
    ("name", "library", "extra", "release"), [(*LIBRARIES[0], "0.6.2"), (*LIBRARIES[1], "5.9.0")]
)
def test_an_old_library_names_the_pip_command(name, library, extra, release, forget, monkeypatch):
    forget(name)
    monkeypatch.setattr(importlib.metadata, "version", {library: release}.__getitem__)
    with pytest.raises(
        SerializerMissingError,
        match=rf"{library} {release} is installed, .* or later is needed: .*\[{extra}\]",
    ):
        resolve(name)


@pytest.mark.parametrize(("name", "library", "extra"), LIBRARIES)
def test_a_copy_without_metadata_is_taken(name, library, extra, forget, monkeypatch):
    forget(name)

    def version(project):
        raise importlib.metadata.PackageNotFoundError(project)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert resolve(name).name == name


def test_encryption_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SerializerMissingError, match=r"cryptography .*pip install 'persistcoll\[crypto\]'"):
        encrypted("json", bytes(32))


def test_no_library_is_imported_before_it_is_asked_for():
    import subprocess

    program = (
        "import sys; before = set(sys.modules); import persistcoll.serializers as s; s.resolve('json');"
        "s.signed('pickle', b'0123456789abcdef');"
        "print(*{'msgpack', 'cbor2', 'cryptography'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
