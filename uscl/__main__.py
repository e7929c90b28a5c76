"""``python -m uscl`` is the same as ``uscl``."""

import sys

from uscl.cli import main

if __name__ == "__main__":
    sys.exit(main())
