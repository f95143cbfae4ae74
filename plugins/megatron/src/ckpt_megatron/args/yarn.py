"""YaRN of usual attention (yarn_rotary_pos_embedding.py), which GPTModel has since core 0.15.

Bridge's GPTModelProvider has a field for each number since 0.4, Megatron-LM an argument since 0.19. They differ in the names,
and in what null means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, schema
from ckpt_megatron.args.values import positive

_NUMBERS = ("factor", "original_positions", "beta_fast", "beta_slow")
_MSCALES = ("mscale", "mscale_all_dim")
_USUAL = {"beta_fast": 32.0, "beta_slow": 1.0}
_ROTARY = "attention.rotary"
_SCALING = f"{_ROTARY}.scaling"


@schema.dataclass(frozen=True)
class Yarn:
    """The `names` of the numbers, by the schema's; `nulls` is what a null stands for. A number without one must be given."""

    names: Mapping[str, str]
    nulls: Mapping[str, Any]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.names.values())

    def read(self, config: Mapping[str, Any], facts: Facts) -> None:
        """Enter the scaling of a model whose position_embedding_type is yarn."""
        given = {name: config.get(key) for name, key in self.names.items()}
        value = {name: self.nulls.get(name) if one is None else one for name, one in given.items()}
        scaling: dict[str, Any] = {"kind": schema.RotaryKind.YARN, "truncate": bool(value["truncate"])}
        for name in _NUMBERS:
            if value[name] is None:
                key = self.names[name]
                raise CkptError(f"key {key!r} is missing, and position_embedding_type is yarn", found="null")
            scaling[name] = positive({self.names[name]: value[name]}, self.names[name], 1.0)
        # YarnRotaryEmbedding takes the whole head, whatever rotary_percent says, and no interpolation.
        facts[f"{_ROTARY}.fraction"] = 1.0
        factor, mscale, all_dim = scaling["factor"], value["mscale"], value["mscale_all_dim"]
        # One that is null leaves out both (_yarn_get_concentration_factor), as 1 and 0 do.
        if mscale is not None and all_dim is not None and (mscale, all_dim) != (1.0, 0.0):
            if mscale and all_dim:
                scaling |= {"mscale": mscale, "mscale_all_dim": all_dim}
            else:  # elsewhere one of them counts only together with the other
                scaling["attention_factor"] = _stretch(factor, mscale) / _stretch(factor, all_dim)
        facts.update({f"{_SCALING}.{name}": one for name, one in scaling.items()})

    def write(self, facts: Facts, config: dict[str, Any]) -> None:
        """Enter the keys that say the scaling, each of them in full.

        Bridge 0.6 itself copies only what a config of transformers says: without betas its model raises, and without `truncate` its
        range is not rounded, as transformers' is.
        """
        if configs.uniform(facts, f"{_ROTARY}.fraction") != 1.0:
            raise Refusal("yarn rotates whole heads", found=f"{_ROTARY}.fraction")
        said = {name: configs.uniform(facts, f"{_SCALING}.{name}") for name in (*_NUMBERS, *_MSCALES)}
        said |= {name: value for name, value in _USUAL.items() if said[name] is None}
        wanted = configs.uniform(facts, f"{_SCALING}.attention_factor")
        if wanted is not None:
            # no key says it; with mscale_all_dim of zero it follows from mscale alone
            said["mscale_all_dim"] = 0.0
            said["mscale"] = (wanted - 1.0) / (0.1 * math.log(said["factor"])) if said["factor"] > 1 else 0.0
            if not math.isclose(_stretch(said["factor"], said["mscale"]), wanted, rel_tol=1e-12):
                raise Refusal("yarn stretches nothing by a factor of one or less", found=f"attention_factor = {wanted}")
        elif not (said["mscale"] and said["mscale_all_dim"]):
            said |= {name: self.nulls.get(name) for name in _MSCALES}
        said["truncate"] = configs.uniform(facts, f"{_SCALING}.truncate") is not False
        config |= {self.names[name]: value for name, value in said.items() if value is not None}
        config["rotary_percent"] = 1.0


ARGUMENTS = Yarn(
    {
        "factor": "rotary_scaling_factor",
        "original_positions": "yarn_original_max_position_embeddings",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "yarn_correction_range_round_to_int",
    },
    # _apply_yarn_config_from_args (training/argument_utils.py, core 0.19)
    {"factor": 1.0, "original_positions": 4096, **_USUAL, "mscale": 1.0, "mscale_all_dim": 0.0, "truncate": True},
)
"""The arguments of Megatron-LM; three of them are those of latent attention too."""
FIELDS = Yarn(
    {
        "factor": "yarn_rotary_scaling_factor",
        "original_positions": "yarn_original_max_position_embeddings",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
        "mscale": "yarn_mscale",
        "mscale_all_dim": "yarn_mscale_all_dim",
        "truncate": "yarn_correction_range_round_to_int",
    },
    {"truncate": False},  # the default of Bridge is null, which is False to Megatron-Core
)
"""The fields of Bridge's GPTModelProvider."""


def check_arguments(args: Mapping[str, Any]) -> None:
    """Refuse args that say yarn, but are older than its arguments: no Megatron-LM builds a model of them."""
    for key in ARGUMENTS.keys:
        if key not in args:
            raise CkptError(
                f"key {key!r} is missing, and position_embedding_type is yarn",
                expected="the args of Megatron-LM 0.19 or later, which are the first that say a yarn in full",
            )


def refuse_yarn_elsewhere(config: Mapping[str, Any]) -> None:
    """Attention stretches what it rotates wherever the factor is given (_yarn_get_concentration_factor_from_config)."""
    key = FIELDS.names["factor"]
    factor = config.get(key)
    if factor is not None and factor > 1:
        raise CkptError(
            f"key {key!r} scales rotary positions that are not of yarn",
            found=f"{factor}, position_embedding_type = {config.get('position_embedding_type')}",
            expected="position_embedding_type = yarn, or null",
        )


def is_yarn(facts: Facts) -> bool:
    return configs.uniform(facts, f"{_SCALING}.kind") is schema.RotaryKind.YARN


def without_scaling(facts: Facts) -> Facts:
    """The facts but for the scaling of rotary positions."""
    return Facts({path: value for path, value in facts.items() if not path.startswith(f"{_SCALING}.")})


def _stretch(factor: float, mscale: float) -> float:
    """_yarn_get_mscale."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
