"""The state of a training: moments and masters by canonical parameter, and the numbers that go on with them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.training import adam
    from ckpt_core.training.follow import followed
    from ckpt_core.training.groups import assumed_of, named_groups, regrouped
    from ckpt_core.training.moments import (
        EXP_AVG,
        EXP_AVG_SQ,
        KINDS,
        MASTER,
        MOMENTS,
        Kind,
        moment_native,
        moment_of,
        named,
    )
    from ckpt_core.training.serial import SCHEMA, from_json, to_json
    from ckpt_core.training.state import ADAM, ADAMW, Group, Schedule, Training
    from ckpt_core.training.unsaid import SAID, unsaid_of
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".adam": ":adam",
            ".follow": "followed",
            ".groups": "assumed_of named_groups regrouped",
            ".moments": "EXP_AVG EXP_AVG_SQ KINDS MASTER MOMENTS Kind moment_native moment_of named",
            ".serial": "SCHEMA from_json to_json",
            ".state": "ADAM ADAMW Group Schedule Training",
            ".unsaid": "SAID unsaid_of",
        },
    )

__all__ = [
    "ADAM",
    "ADAMW",
    "EXP_AVG",
    "EXP_AVG_SQ",
    "KINDS",
    "MASTER",
    "MOMENTS",
    "SAID",
    "SCHEMA",
    "Group",
    "Kind",
    "Schedule",
    "Training",
    "adam",
    "assumed_of",
    "followed",
    "from_json",
    "moment_native",
    "moment_of",
    "named",
    "named_groups",
    "regrouped",
    "to_json",
    "unsaid_of",
]
