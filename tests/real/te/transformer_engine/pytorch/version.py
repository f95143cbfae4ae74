"""The version that the stand-in claims to be: which modules have an extra state depends on it."""

import os

NAME = os.environ.get("TE_STANDIN_VERSION", "2.6.0")
VERSION = tuple(int(part) for part in NAME.split(".")[:2])
