"""`python -m ckpt_core` is `ckpt`."""

import sys

from ckpt_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
