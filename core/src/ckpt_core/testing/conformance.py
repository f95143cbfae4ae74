"""The laws every format obeys, as a class to inherit; `Quirks` says what the format is like.

Three laws: what is written reads back bit for bit, and what is read writes back byte for byte; every tensor and
every config key is accounted for; what the format cannot say is refused by name. And two manners: a plan fits its
memory, and nothing imports a framework. Each law is a module of `ckpt_core.testing.laws`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckpt_core.testing.laws.accounting import Accounting
from ckpt_core.testing.laws.facts import NothingSilent
from ckpt_core.testing.laws.goldens import OwnFramework
from ckpt_core.testing.laws.itself import Manners
from ckpt_core.testing.laws.lens import Lens
from ckpt_core.testing.laws.memory import BoundedMemory
from ckpt_core.testing.laws.names import Names
from ckpt_core.testing.laws.sentences import Said
from ckpt_core.testing.variations import variations
from ckpt_core.testing.workshop import Workshop

_NONE = {
    "config": "Quirks.configs is empty: no config file whose keys are checked",
    "golden": "Quirks.goldens is empty: no checkpoint of the framework's own",
}


class FormatConformance(Manners, Lens, Accounting, NothingSilent, Said, Names, BoundedMemory, OwnFramework):
    """Inherit, name the `format`, and describe it in `quirks`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        quirks = self.quirks
        cases: dict[str, Callable[[], dict[str, object]]] = {
            "model": lambda: dict(quirks.models),
            "layout": lambda: {str(layout): layout for layout in quirks.layouts()},
            "dtype": lambda: {dtype: dtype for dtype in quirks.dtypes},
            "variation": lambda: {
                name: variation
                for name, variation in variations(next(iter(quirks.models.values()))).items()
                if name.startswith(quirks.varied)
            },
            "config": lambda: {config: config for config in quirks.configs},
            "golden": lambda: {golden.name: golden for golden in quirks.golden_cases()},
        }
        names = [name for name in cases if name in metafunc.fixturenames]
        if {"model", "layout"} <= {*names}:
            pairs = [
                pytest.param(model, layout, id=f"{name}-{layout}")
                for number, (name, model) in enumerate(quirks.models.items())
                for layout in quirks.layouts_of(number)
            ]
            metafunc.parametrize(("model", "layout"), pairs)
            names = [name for name in names if name not in ("model", "layout")]
        for name in names:
            values = cases[name]()
            none = pytest.param(None, id="none", marks=pytest.mark.skip(reason=_NONE.get(name, f"there is no {name}")))
            metafunc.parametrize(name, list(values.values()) or [none], ids=list(values) or None)

    @pytest.fixture(scope="class")
    @classmethod
    def workshop(cls, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
        return Workshop(cls.format, cls.quirks, tmp_path_factory.mktemp(cls.format))
