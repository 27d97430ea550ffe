"""``python -m docs.pictures [DIRECTORY]`` writes all pictures there, or those of the README into ``svg``."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.pictures import PICTURES, STORED


def main(arguments: list[str]) -> None:
    """Write the pictures."""
    directory = Path(arguments[0]) if arguments else Path(__file__).with_name("svg")
    directory.mkdir(parents=True, exist_ok=True)
    for name in PICTURES if arguments else STORED:
        (directory / f"{name}.svg").write_text(PICTURES[name]().svg() + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
