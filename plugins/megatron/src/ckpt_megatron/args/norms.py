"""Norms: all of a model are of one kind, with one epsilon."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_core.sdk import configs, key, key_is, values

ALIKE = "all norms of a model are of one kind"

LATENT_ALIKE = f"{ALIKE}, those on latents too: -o latent_norm_eps reads the source with another epsilon of these"

USUAL = ("attention.norm", "mlp.norm", "final_norm")
"""Norms before attention, before the MLP and at the end."""


def norms(latent: bool, alike: Sequence[str] = USUAL) -> list[configs.Entry]:
    """The norms at `alike`, the first of which stands for all; with --qk-layernorm, on queries and keys too."""
    first, *others = ["latent_attention.norm", *alike[1:]] if latent else alike
    if latent:
        inside: list[configs.Entry] = [
            key_is("qk_layernorm", True, why="latent attention without norms on its latents is not supported"),
            configs.all_agree(first, "latent_attention.kv_norm", why=LATENT_ALIKE),
            configs.where(
                "latent_attention.q_rank", [configs.all_agree(first, "latent_attention.q_norm", why=LATENT_ALIKE)]
            ),
        ]
    else:
        inside = [configs.switched("qk_layernorm", [configs.all_agree(first, "attention.qk_norm", why=ALIKE)])]
    return [
        configs.choice(
            "normalization",
            {
                "LayerNorm": {f"{first}.kind": "layer", f"{first}.bias": True},
                "RMSNorm": {f"{first}.kind": "rms", f"{first}.bias": False},
            },
            default="LayerNorm",
        ),
        # norm_epsilon from core 0.4 to 0.15, layernorm_epsilon before and since; apply_layernorm_1p until 0.15.
        key("layernorm_epsilon", f"{first}.eps", also=["norm_epsilon"], write_all=True, default=1e-5),
        key(
            "layernorm_zero_centered_gamma",
            f"{first}.zero_centred",
            also=["apply_layernorm_1p"],
            write_all=True,
            default=False,
            type=values.switch,
        ),
        configs.all_agree(first, *others, why=ALIKE),
        *inside,
    ]
