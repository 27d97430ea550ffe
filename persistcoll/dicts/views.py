"""What ``keys()``, ``values()`` and ``items()`` of a ``PDict`` return: live views, as those of a dict."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from persistcoll.dicts.base import BaseDict

__all__ = ["PDictItems", "PDictKeys", "PDictValues"]

K = TypeVar("K")
V = TypeVar("V")

_MISSING = object()


class PDictKeys(KeysView[K]):
    """The keys, in the order in which they were added.

    See :meth:`persistcoll.PDict.keys`. Cost: an iteration reads the keys page by page, and no values.
    """

    __slots__ = ()
    _mapping: BaseDict[K, Any]

    @property
    def mapping(self) -> Mapping[K, Any]:
        """The dict, as a mapping that only reads."""
        return MappingProxyType(self._mapping)

    def __reversed__(self) -> Iterator[K]:
        return reversed(self._mapping)


class PDictValues(ValuesView[V]):
    """The values, in the order of their keys.

    See :meth:`persistcoll.PDict.values`. Cost: ``value in values`` reads one value after another until it is
    found.
    """

    __slots__ = ()
    _mapping: BaseDict[Any, V]

    @property
    def mapping(self) -> Mapping[Any, V]:
        """The dict, as a mapping that only reads."""
        return MappingProxyType(self._mapping)

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)

    def __iter__(self) -> Iterator[V]:
        return self._mapping._iter_values()

    def __reversed__(self) -> Iterator[V]:
        return self._mapping._iter_values(reverse=True)


class PDictItems(ItemsView[K, V]):
    """The pairs of keys and values, in the order of the keys.

    See :meth:`persistcoll.PDict.items`. Cost: ``item in items`` reads the value of one key.
    """

    __slots__ = ()
    _mapping: BaseDict[K, V]

    @property
    def mapping(self) -> Mapping[K, V]:
        """The dict, as a mapping that only reads."""
        return MappingProxyType(self._mapping)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        key, value = item
        found: Any = self._mapping.get(key, _MISSING)
        return found is not _MISSING and (found is value or found == value)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._iter_items()

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._iter_items(reverse=True)
