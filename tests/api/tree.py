"""The package's modules as text, read from where it is imported: the checkout or an installed wheel."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import persistcoll

__all__ = ["PACKAGE", "PROJECT", "Module", "modules"]

PACKAGE = Path(persistcoll.__file__).parent
# The checkout of these tests. A copy of tests/ elsewhere has no setup.cfg beside it.
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Module:
    """One module: its dotted name and its text."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def room(self) -> str:
        """Its package: ``engine`` of ``persistcoll.engine.records``, ``errors`` of ``persistcoll.errors``."""
        return self.name.partition(".")[2].partition(".")[0]

    def imports(self) -> dict[str, int]:
        """Return every import, those for types and late ones too: dotted name to line."""
        found: dict[str, int] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found.setdefault(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: a relative import"
                for alias in node.names:
                    found.setdefault(f"{node.module}.{alias.name}", node.lineno)
        return found


def modules() -> list[Module]:
    """Return every module, sorted by name."""
    found = []
    # An own walk, because on some versions rglob does not enter persistcoll/serializers, which is a symlink
    # in a checkout.
    waiting = [PACKAGE]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            if path.is_dir() and (path / "__init__.py").is_file():
                waiting.append(path)
            elif path.suffix == ".py":
                parts = ["persistcoll", *path.relative_to(PACKAGE).with_suffix("").parts]
                found.append(Module(".".join(parts).removesuffix(".__init__"), path.read_text("utf-8")))
    return sorted(found, key=lambda module: module.name)
