"""The version of the packages."""

VERSION = "0.1.0"
