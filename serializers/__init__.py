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
from persistcoll.serializers.keys import Keys, KeySource, key_file, key_from_env
from persistcoll.serializers.registry import ModuleReference, codec, locate, resolve
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
    "resolve",
    "signed",
]
