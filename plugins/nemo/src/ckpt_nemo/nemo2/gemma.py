"""Gemma 2 and 3 of NeMo 2, whose layers are made by functions of their own (`gemma2.py` of NeMo 2.1 to 2.4, `gemma3.py` of 2.4).

Which layers of a Gemma 2 slide, no field says: 2.1 and 2.2 slide none; since 2.3 every second one slides, and not the first as in
transformers, where batches come with an attention mask, and none where they do not. So `-o gemma2_windows` has to say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, decided, ignore, key, ledgers, schema
from ckpt_megatron.sdk import transformer_config

FUNCTIONS = "nemo.collections.llm.fn.activation"
"""Where NeMo has the activations that torch does not have."""
WINDOWS = "gemma2_windows"
"""The option that says which layers of a Gemma 2 slide; the table reads it as a field."""
FIRST, SECOND, NONE = "first", "second", "none"
POST_NORM_EPS = "post_norm_eps"
_AROUND = transformer_config.usual("", FUNCTIONS, alike=transformer_config.AROUND)


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given, slide = config.get("window_size"), config.get(WINDOWS)
    if not given or slide == NONE:
        return
    if not isinstance(given, list | tuple) or len(given) != 2 or given[1] != 0 or given[0] < 0:
        raise CkptError("key 'window_size' is not (w - 1, 0)", found=str(given)[:40])
    if slide is None:
        raise CkptError(
            "which layers of a Gemma 2 slide depends on the NeMo that runs it, and on whether its batches have a mask",
            found=f"window_size = {tuple(given)}",
            expected=f"{FIRST} (as transformers has it), {SECOND} (NeMo 2.3 and 2.4 with masks) or {NONE} (without masks, and before 2.3)",
            fix=f"-o {WINDOWS}={FIRST} for a model that was only converted",
        )
    present = schema.PerLayer(index % 2 == (slide == SECOND) for index in range(facts["layers"]))
    facts["attention.window"] = given[0] + 1
    if not all(present):
        facts["attention.window?"] = present


def _positions_before(window: int) -> list[int]:
    return [window - 1, 0]


def _made_by(spec: str) -> configs.Entry:
    """The layers are made by the function `spec`, which is the default of the class."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        name = transformer_config.spec_of(config)
        if name and transformer_config.short(name) != spec:
            raise CkptError(
                f"key {transformer_config.SPEC!r} makes other layers than those of the class",
                found=name[:120],
                expected=spec,
            )

    return decided([transformer_config.SPEC], [], read=read, values={}, why=f"the layers that {spec} makes")


# fmt: off
GEMMA2 = transformer_config.gemma2(_AROUND, "NeMo 2's Gemma2Config",
    _made_by("gemma2_layer_spec"),
    decided(["window_size", WINDOWS], ["attention.window", "attention.window?"], read=_read_windows, uses=["layers"],
            values={("window_size", WINDOWS): [(None, NONE), *((configs.value_of("attention.window", by=_positions_before), one) for one in (FIRST, SECOND))]},
            why="every second layer has the window, the first or the second among them"),
)

GEMMA3 = transformer_config.gemma3(_AROUND, "NeMo 2's Gemma3Config",
    _made_by("gemma3_layer_spec"),
    key("softmax_scale", "attention.scale", default=None),
    ignore("is_vision_language", why="positions of images then see each other, by a mask that the batches bring", written=lambda facts: False),
    before=1,  # (window_size, 0) is what core attention is given, which counts the positions before a query's own
)
# fmt: on


def check_written(facts: Facts, fields: dict[str, Any], options: Mapping[str, Any]) -> list[ledgers.Loss]:
    """What NeMo computes otherwise of a model around whose blocks norms lie. Raises `Refusal` where nobody asked for it all the same."""
    losses = transformer_config.post_norms(facts, "NeMo 2")
    if losses and options.get(POST_NORM_EPS) is None:
        raise Refusal(
            "NeMo 2 computes norms on the outputs of blocks with the epsilon 1e-05, whatever layernorm_epsilon says: another function",
            found=f"attention.out_norm.eps = {configs.uniform(facts, 'attention.out_norm.eps')}",
            fix=f"-o {POST_NORM_EPS}=1e-5 writes it all the same",
            fact="attention.out_norm.*",
        )
    slide = fields.pop(WINDOWS, NONE)
    if slide == NONE:
        return losses
    asked = options.get(WINDOWS)
    if asked != slide:
        raise Refusal(
            "NeMo 2 itself decides which layers of a Gemma 2 slide: from 2.3 on every second one where batches have a mask, none otherwise",
            found=f"attention.window in every second layer, the {slide} among them",
            fix=f"-o {WINDOWS}={slide} writes it all the same",
            fact="attention.window?",
        )
    why = "NeMo 2.1 and 2.2, and later ones without a mask, slide no layer, and with one every second layer, the second among them: a text no longer than the window is computed alike"
    return [*losses, ledgers.Loss("assumed", f"layers that slide: every second one, the {slide} among them", why)]
