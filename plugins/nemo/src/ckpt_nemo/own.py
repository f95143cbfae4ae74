"""NeMo itself, where it is installed: its loaders run what a checkpoint says, so it is not asked.

`restore_from` of NeMo 1 imports and calls the `target` and `_target_` that the archive names, `load_context` of NeMo 2 whatever
its `io.json` names, with the arguments that it gives; no list says which of them are harmless. The sessions
`real_nemo1` and `real_nemo2` run both on checkpoints that we wrote.
"""

from __future__ import annotations

from ckpt_core.sdk import judgement


def judged(package: str) -> judgement.Judgement | None:
    """The hook `ckpt_logits`; `package` is the one with the models of this NeMo."""
    if not judgement.installed(package):
        return None
    why = "its loader calls what the checkpoint names, which is not done with one that may be a stranger's"
    return judgement.Judgement(judgement.named("nemo_toolkit"), cannot=why)
