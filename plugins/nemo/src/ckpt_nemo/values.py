"""Reading single keys of NeMo's configs, in the lines of which a function decides what several keys mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, values

Values = Mapping[str, Any]


def given(config: Values, key: str, default: Any) -> Any:
    """The value of a key, or `default` where it is absent or null."""
    value = config.get(key)
    return default if value is None else value


def flag(config: Values, key: str, default: bool = False) -> bool:
    """A key that is true or false; left out or null it is `default`."""
    return bool(values.checked(key, given(config, key, default), values.flag))


def whole(config: Values, key: str, default: int | None = None) -> int:
    """A key that is a positive whole number; left out it is `default`."""
    return int(values.checked(key, config.get(key, default), values.whole))


def is_since(config: Values, version: tuple[int, int], key: str) -> bool:
    """Whether the NeMo that wrote a checkpoint reads `key`, as versions since `version` do; an error where the version is not known."""
    match = re.match(r"(\d+)\.(\d+)", str(config.get("nemo_version")))
    if match is None:
        raise CkptError(
            f"whether {key!r} has an effect depends on the version of NeMo, which is not stored",
            found=f"{key} = {config[key]}",
            fix=f"give it: -o nemo_version={version[0]}.{version[1]}, or an older one",
        )
    return (int(match[1]), int(match[2])) >= version
