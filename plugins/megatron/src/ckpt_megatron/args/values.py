"""Reading single args."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, configs, key_is

Args = Mapping[str, Any]


def neutral(key: str, value: object) -> configs.Entry:
    """A key under which Megatron computes something else unless it has this value, or is left out or None."""
    as_number = (int(value),) if isinstance(value, bool) else ()  # a switch may be saved as 0 or 1
    return key_is(key, value, *as_number, *([None] if value is not None else []), or_absent=True)


def given(args: Args, key: str, default: Any) -> Any:
    """The value of an arg, or `default` where it is absent or None.

    >>> given({"rotary_percent": None}, "rotary_percent", 1.0)
    1.0
    """
    value = args.get(key)
    return default if value is None else value


def flag(args: Args, key: str, *, default: bool = False) -> bool:
    """A switch: True or False (1 or 0), or `default` where it is absent or None."""
    value = args.get(key)
    if value is None:
        return default
    if value not in (True, False) or not isinstance(value, bool | int):
        raise CkptError(f"key {key!r} is neither True nor False", found=repr(value)[:80])
    return bool(value)


def has_linear_biases(args: Args) -> bool:
    """Whether all linear layers have biases; until core 0.4 the flag was the opposite."""
    return flag(args, "add_bias_linear", default=not flag(args, "disable_bias_linear"))


def positive(args: Args, key: str, default: float) -> Any:
    """A number above zero, or `default` where it is absent or None."""
    value = given(args, key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CkptError(f"key {key!r} is not a positive number", found=repr(value)[:80])
    return value


def layer_count(args: Args) -> int:
    """num_layers, checked."""
    count = args.get("num_layers")
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError("key 'num_layers' is not a number of layers", found=repr(count))
    return count


def per_layer(values: object, count: int, key: str) -> list[Any]:
    """A list that has to give one value for each of `count` layers."""
    if not isinstance(values, list | tuple) or len(values) != count:
        raise CkptError(
            f"key {key!r} does not give one value per layer", found=repr(values)[:80], expected=f"{count} values"
        )
    return list(values)


def chosen_layers(args: Args, key: str, nth: Callable[[int, int], bool]) -> list[bool] | None:
    """The layers that `key` chooses: those a list of 0 and 1 names, or those for which `nth(index, n)` holds.

    None where the key is absent or None.
    """
    value, count = args.get(key), layer_count(args)
    if value is None:
        return None
    if type(value) is int and value > 0:
        return [nth(index, value) for index in range(count)]
    chosen = per_layer(value, count, key)
    if any(one not in (0, 1) for one in chosen):
        raise CkptError(f"key {key!r} has a value that is neither 0 nor 1", found=repr(value)[:80])
    return [bool(one) for one in chosen]
