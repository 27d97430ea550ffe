"""Between objects and bytes: what every container takes as ``serializer=``.

The built-in ones are modules of this package, and are also known by their names:

===========  ==================  =====================================  =============================
name         module              holds                                  needs
===========  ==================  =====================================  =============================
``pickle``   :mod:`.pickle`      nearly anything; **runs code** when    nothing; the default
                                 it reads what an attacker wrote
``json``     :mod:`.json`        what JSON can hold                     nothing
``msgpack``  :mod:`.msgpack`     JSON's types and bytes                 ``persistcoll[msgpack]``
``cbor``     :mod:`.cbor`        that, and dates, decimals, sets        ``persistcoll[cbor]``
``raw``      :mod:`.raw`         bytes                                  nothing
===========  ==================  =====================================  =============================

They are attributes of this package as well: ``serializers.json``. ``serializers.cbor2`` is the name that
persist-queue has for :mod:`.cbor`.

Each module's page lists what does not come back as it was put. Any other module or object with
``dumps`` and ``loads`` will do as well, see :func:`resolve`. ``signed``, ``compressed`` and
``encrypted`` (``persistcoll[crypto]``) go around any of them.

The invariant: nothing is imported, and no serializer is chosen, by a name that a store gave.

>>> from persistcoll.serializers import compressed, json, signed
>>> mine = signed(compressed(json), [b"the key of this year", b"the key of last year"])
>>> mine
signed(compressed(json))
>>> mine.loads(mine.dumps({"hello": "world"}))
{'hello': 'world'}
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from persistcoll.serializers.base import (
    Codec,
    Seal,
    Sealed,
    Serializer,
    decode,
    decode_error,
    encode,
    encode_error,
)
from persistcoll.serializers.canonical import canonical
from persistcoll.serializers.registry import ModuleReference, codec, picklable_reference, resolve
from persistcoll.serializers.registry import picklable_reference as locate

if TYPE_CHECKING:
    from persistcoll.serializers import cbor as cbor
    from persistcoll.serializers import cbor2 as cbor2
    from persistcoll.serializers import json as json
    from persistcoll.serializers import msgpack as msgpack
    from persistcoll.serializers import pickle as pickle
    from persistcoll.serializers import raw as raw
    from persistcoll.serializers.signing_keys import Keys, KeySource, key_file, key_from_env
    from persistcoll.serializers.wrappers import compressed, encrypted, signed

__all__ = [
    "Codec",
    "KeySource",
    "Keys",
    "ModuleReference",
    "Seal",
    "Sealed",
    "Serializer",
    "canonical",
    "codec",
    "compressed",
    "decode",
    "decode_error",
    "encode",
    "encode_error",
    "encrypted",
    "key_file",
    "key_from_env",
    "locate",
    "picklable_reference",
    "resolve",
    "signed",
]

_MODULES = frozenset(("cbor", "cbor2", "json", "msgpack", "pickle", "raw"))
# Imported when asked for first: most stores have no use for keys and hashes.
_HOMES = {
    "KeySource": "signing_keys",
    "Keys": "signing_keys",
    "compressed": "wrappers",
    "encrypted": "wrappers",
    "key_file": "signing_keys",
    "key_from_env": "signing_keys",
    "signed": "wrappers",
}


if not TYPE_CHECKING:  # a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        """:raises SerializerMissingError: a module whose library is not installed."""
        if name in _MODULES:
            return import_module(f"persistcoll.serializers.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"persistcoll.serializers.{_HOMES[name]}"), name)
        globals()[name] = value  # found without this function from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
