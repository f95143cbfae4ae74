"""The program: `python -m ckpt_core` is `ckpt`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # For `-m`, Python looks for modules in the current folder first. It may be a stranger's checkpoint, and hold modules and
    # plugins (`*.dist-info`).
    del sys.path[0]

from ckpt_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
