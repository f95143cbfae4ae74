"""What the framework itself wrote, and what it computes from what is written for it."""

from __future__ import annotations

from fnmatch import fnmatchcase as fnmatch
from typing import TYPE_CHECKING

import pytest

from ckpt_core.api import digests, fingerprint, fingerprint_of, read_checkpoint
from ckpt_core.architecture import Architecture
from ckpt_core.errors import CkptError
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.plugins.discovery import require
from ckpt_core.testing.examples import calm_numbers
from ckpt_core.testing.functions import POSITIONS, apart
from ckpt_core.testing.hearing import FELT, WholeModel, unfelt
from ckpt_core.testing.laws.base import TOLERANCE, Law
from ckpt_core.testing.quirks import Golden
from ckpt_core.testing.workshop import Workshop

if TYPE_CHECKING:
    import torch

    from ckpt_core.reference import Inputs


class OwnFramework(Law):
    """The framework's own checkpoints and logits."""

    def test_a_golden_survives(self, workshop: Workshop, golden: Golden) -> None:
        """Through the format itself in its own layout, and through every other layout, with an equal fingerprint."""
        if "refused" in golden.case:
            with pytest.raises(CkptError) as refusal:
                self._read(golden.checkpoint)
            assert str(golden.case["refused"]) in str(refusal.value)
            return
        checkpoint = self._read(golden.checkpoint)
        expected = fingerprint_of(checkpoint, digests(checkpoint))
        assert fingerprint(workshop.write(golden.checkpoint, golden.layout), format=self.format) == expected
        for layout in self.quirks.layouts():
            try:
                out = workshop.write(golden.checkpoint, layout)
            except CkptError:
                assert layout.asked(), "the whole model can always be written"
                continue
            assert fingerprint(out, format=self.format) == expected

    def test_a_golden_computes_the_same(self, golden: Golden) -> None:
        """The reference forward on what was read, against the logits that the framework itself computed."""
        model, inputs, expected = self._with_logits(golden)
        found = apart(model.logits(inputs), expected)
        assert found <= TOLERANCE, f"the reference is {found:.2g} from the framework's own logits"

    def test_a_golden_is_not_deaf(self, golden: Golden) -> None:
        """Every axis of every kind of tensor, the other way round, and every fact of the config, changed, moves its logits. Else
        equal logits would prove nothing of it."""
        model, inputs, _ = self._with_logits(golden)
        unheard = [
            what for what in unfelt(model, inputs) if not any(fnmatch(what, known) for known in self.quirks.unfelt)
        ]
        assert not unheard, (
            f"no logit moves by {FELT:.2g} with: {', '.join(unheard)}. Make the golden with other values (small weights hide a "
            "mistake, and so do few positions), or say in Quirks.unfelt why nothing can feel it"
        )

    def _with_logits(self, golden: Golden) -> tuple[WholeModel, Inputs, torch.Tensor]:
        pytest.importorskip("torch")
        load_file = pytest.importorskip("safetensors.torch").load_file
        from ckpt_core.reference import Inputs

        file = golden.folder / "expected.safetensors"
        if "refused" in golden.case or not file.is_file():
            pytest.skip("this case has no logits")
        expected = load_file(file)
        with OpenCheckpoint(self._read(golden.checkpoint)) as opened:
            model = WholeModel.of(opened)
        return model, Inputs(tokens=expected["input_ids"]), expected["logits"]

    def test_its_own_framework_computes_the_same(self, workshop: Workshop, model: Architecture) -> None:
        """What `ckpt_logits` makes of what is written, against the reference forward: the check that sees a wrong sentence."""
        if not require(self.format).hooks.ckpt_logits.get_hookimpls():
            pytest.skip("the plugin has no hook ckpt_logits, by which its own framework could say what it reads")
        if workshop.unasked:
            pytest.skip(workshop.unasked)
        pytest.importorskip("torch")
        from ckpt_core.reference import random_inputs
        from ckpt_core.verify.logits import compare_logits

        source = workshop.source(model, values=calm_numbers)
        out = self._read(workshop.converted(source))
        report = compare_logits(read_checkpoint(source), out, random_inputs([out.architecture], POSITIONS), 1 << 30)
        if out.path in report.alone:
            workshop.unasked = report.alone[out.path]
            pytest.skip(workshop.unasked)
        assert out.path not in report.refused, f"the framework refuses the files: {report.refused.get(out.path)}"
        found = report.judges[out.path]
        assert found.within(TOLERANCE), f"{report.frameworks[out.path]} is {found.largest:.2g} from the reference"
