"""Make ``python -m persistcoll`` the ``persistcoll`` command."""

import sys

from persistcoll.cli import main

if __name__ == "__main__":
    sys.exit(main())
