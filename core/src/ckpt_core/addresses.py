"""The addresses of what a path on this machine stands for: whatever a person or a receipt reads names the address.

What signs a URL stands for nothing, and is read by nobody.
"""

from __future__ import annotations

from typing import Any

_ADDRESSES: dict[str, str] = {}  # folder -> the address that it stands for; the query of a URL -> nothing


def stands_for(folder: str, address: str) -> None:
    """From now on, what lies in `folder` is called as what lies at `address`."""
    _ADDRESSES[folder] = address


def forget(folder: str) -> None:
    """Nothing stands for anything there any more."""
    _ADDRESSES.pop(folder, None)


def spelled(text: str) -> str:
    """`text` with an address for each such folder that it names."""
    for folder, address in _ADDRESSES.items():
        if folder in text:
            text = text.replace(folder, address)
    return text


def spelled_in(value: Any) -> Any:
    """A JSON value with addresses in all its texts, names of keys among them."""
    if not _ADDRESSES:
        return value
    if isinstance(value, str):
        return spelled(value)
    if isinstance(value, dict):
        return {spelled_in(key): spelled_in(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled_in(item) for item in value]
    return value
