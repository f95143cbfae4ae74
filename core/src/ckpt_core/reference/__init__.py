"""The executable definition of the schema: what an `Architecture` computes, in plain float32 PyTorch.

    with open_checkpoint("run/step-1000") as model:
        for step in forward(model, Inputs(tokens=tokens)):
            print(step.name, step.values.norm())          # "embedding", "layers.0.attention", ..., "logits"

Written to be read, not to be fast: one function per field of the schema, no cache, no fusing. Weights are read from
the checkpoint in blocks, used and forgotten, so memory is that of the activations plus one block, whatever the model.
"""

from ckpt_core.reference.inputs import given_inputs, random_inputs
from ckpt_core.reference.model import Inputs, Step, forward

__all__ = ["Inputs", "Step", "forward", "given_inputs", "random_inputs"]
