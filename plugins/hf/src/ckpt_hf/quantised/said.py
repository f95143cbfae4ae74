"""What a config says of the quantisation of a model, before it is known which tool wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import FormatError, dtypes, schema

KEY = "quantization_config"
WEIGHT = ".weight"
"""How the names of weights end."""
FP8 = ("fp8_e4m3", "fp8_e5m2")
"""The dtypes that no weight has which is not quantised."""
HINT = "quantisation"
"""The hint that has what the source's configs say of its codes: the settings, and the file beside config.json, where there is one."""


@schema.dataclass(frozen=True)
class Said:
    """What a config says of how the model was quantised: `settings` stand in `file`, below `key`; `dtype` is that of the weights that
    the tools make of it, by config.json."""

    settings: Mapping[str, Any]
    file: str
    key: str
    dtype: dtypes.DType

    def names(self, key: str) -> tuple[str, ...]:
        """A list of modules; empty where there is none."""
        given = self.settings.get(key) or []
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise self.wrong(key, "a list of names")
        return tuple(given)

    def wrong(self, name: str, expected: str, fix: str | None = None) -> FormatError:
        """The error that a setting is none that can be."""
        found = repr(self.settings.get(name))[:80]
        return FormatError(f"{self.key}.{name} is not read", file=self.file, found=found, expected=expected, fix=fix)
