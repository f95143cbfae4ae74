"""Reading single keys of `model_config.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Custom, Facts, custom

Values = Mapping[str, Any]


def neutral(key: str, *values: object) -> Custom:
    """A key under which NeMo computes something that is not supported, unless it has one of `values`; the first is written."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if config.get(key) not in (None, *values):
            raise CkptError(
                f"key {key!r} asks for something that is not supported",
                found=repr(config[key])[:80],
                expected=repr(values[0]),
            )

    return custom([key], [], read=read, write=lambda facts, notes, config: config.update({key: values[0]}))


def unwritten(key: str, *values: object) -> Custom:
    """The same for a key that ordinary configs do not have."""
    return custom([key], [], read=neutral(key, *values, False).reader, write=lambda facts, notes, config: None)


def given(config: Values, key: str, default: Any) -> Any:
    """The value of a key, or `default` where it is absent or null."""
    value = config.get(key)
    return default if value is None else value


def since(config: Values, version: tuple[int, int], key: str) -> bool:
    """Whether the NeMo that wrote a checkpoint has a feature; asked for where the config does not tell."""
    match = re.match(r"(\d+)\.(\d+)", str(config.get("nemo_version")))
    if match is None:
        raise CkptError(
            f"whether {key!r} has an effect depends on the version of NeMo, which is not stored",
            found=f"{key} = {config[key]}",
            fix=f"give it: -o nemo_version={version[0]}.{version[1]}, or an older one",
        )
    return (int(match[1]), int(match[2])) >= version
