"""The names of activations in the configs of GPT and of the ViT, which build their MLPs of the same class (ParallelMLP)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, CkptError
from ckpt_nemo.values import Values, given

PLAIN = {"gelu": Activation.GELU_ERF, "squared-relu": Activation.RELU_SQUARED, "approx-gelu": Activation.GELU_QUICK}
GATED = {"geglu": Activation.GELU_ERF, "swiglu": Activation.SILU, "reglu": Activation.RELU}
GELUS = ("gelu", "geglu")
# As written: `fast-` fuses gate and up, as the tensors then are. A GELU comes before those that openai_gelu replaces.
WRITTEN = [*PLAIN, *(f"fast-{name}" for name in GATED)]


def named_activation(config: Values) -> tuple[str, bool, Activation]:
    """The name without `fast-`, whether it is gated, and what it is called after. `CkptError` for an unknown name."""
    name = given(config, "activation", "gelu")
    plain = str(name).removeprefix("fast-")
    found = PLAIN.get(str(name)) or GATED.get(plain)
    if found is None:
        expected = ", ".join([*PLAIN, *GATED, *(f"fast-{gated}" for gated in GATED)])
        raise CkptError("key 'activation' has a value that is not supported", found=repr(name)[:60], expected=expected)
    return plain, plain in GATED, found
