"""``python -m persistcoll`` is the ``persistcoll`` command."""

import sys

from persistcoll.cli import main

if __name__ == "__main__":
    sys.exit(main())
