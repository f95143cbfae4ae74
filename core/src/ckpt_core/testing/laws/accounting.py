"""Every tensor and every config key is accounted for, and what is wrong is named."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

from ckpt_core.api import read_checkpoint
from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import ProblemsFound
from ckpt_core.explain import declared_families
from ckpt_core.layout.bind import NO_PLACE
from ckpt_core.plugins.discovery import require
from ckpt_core.reading import IGNORE_KEYS
from ckpt_core.testing.configs import ConfigFile, wrong_configs
from ckpt_core.testing.entries import Entry, one_of_each
from ckpt_core.testing.laws.base import Law, no_crash
from ckpt_core.testing.workshop import Workshop


class Accounting(Law):
    """Every tensor and every key is accounted for."""

    def test_a_missing_tensor_is_named(self, workshop: Workshop) -> None:
        for entry, folder in self._damaged(workshop, "remove"):
            self._assert_refused(workshop, folder, f"{entry.name} was removed", entry)

    def test_a_tensor_too_many_is_named(self, workshop: Workshop) -> None:
        folder = workshop.copy(workshop.source(workshop.base()))
        entries = self._entries()
        name = entries.add(entries.find(folder)[0])
        message = self._assert_refused(workshop, folder, f"{name} was added")
        assert name in message, f"the error does not name {name}:\n{message}"

    def test_a_wrong_shape_is_named(self, workshop: Workshop) -> None:
        """Where no key says how many rows the embedding has, one more is a row of padding."""
        for entry, folder in self._damaged(workshop, "reshape"):
            if self._files_say_the_rows() and self._has_one_row_of_padding(workshop.base(), folder):
                continue
            self._assert_refused(workshop, folder, f"{entry.name} was reshaped", entry)

    def test_integer_weights_are_refused(self, workshop: Workshop) -> None:
        for entry, folder in self._damaged(workshop, "retype"):
            self._assert_refused(workshop, folder, f"{entry.name} became integers")

    def test_a_truncated_file_is_named(self, workshop: Workshop) -> None:
        folder = workshop.copy(workshop.source(workshop.base()))
        file = self._entries().find(folder)[-1].file
        os.truncate(file, os.path.getsize(file) - 3)
        message = self._assert_refused(workshop, folder, "a file was truncated")
        assert os.path.basename(file) in message, f"the error does not name {file}:\n{message}"

    def test_an_unknown_config_key_is_named(self, workshop: Workshop, config: str) -> None:
        folder, file = self._config(workshop, config)
        file.put({**file.body, "surprising_key": 3})
        message = self._assert_refused(workshop, folder, f"{config} got a key that nobody knows")
        assert "surprising_key" in message and file.path.name in message, (
            f"the error does not name the key and its file:\n{message}"
        )
        if IGNORE_KEYS.name in message:  # what it proposes is done
            options = {**self.quirks.read_options, IGNORE_KEYS.name: "surprising_key"}
            read_checkpoint(folder, format=self.format, options=options)

    def test_a_wrong_config_is_an_error_and_never_a_crash(
        self, workshop: Workshop, model: Architecture, config: str
    ) -> None:
        """Nor does it say a model that the tables have no rows for: a row that was forgotten is named by its parameter."""
        folder, file = self._config(workshop, config, model)
        wrong = []
        for said, body in wrong_configs(file.body):
            if said in workshop.tried:
                continue  # with another model
            workshop.tried.add(said)
            file.put(body)
            try:
                found = no_crash(functools.partial(self._read, folder), said)
            except AssertionError as crash:
                wrong.append(str(crash))
                continue
            wrong += [f"{config}: {said} says a model of which {line}" for line in self._without_rows(found)]
        assert not wrong, "\n".join(wrong)

    def _without_rows(self, found: object) -> Iterator[str]:
        """What an error says of parameters that no row holds, but for those that `Quirks.unreached` gives a reason for."""
        for problem in found.problems if isinstance(found, ProblemsFound) else [found]:
            text = getattr(problem, "problem", "")
            if text.endswith(NO_PLACE) and not any(
                map(functools.partial(fnmatch, text.split()[1]), self.quirks.unreached)
            ):
                yield text

    def _has_one_row_of_padding(self, model: Architecture, folder: str) -> bool:
        """Whether what is read is `model`, with a vocabulary table that has one row more."""
        read = no_crash(functools.partial(self._read, folder))
        tokens = model.tokens
        if tokens is None or not isinstance(read, Checkpoint):
            return False
        longer = replace(tokens, padded_vocabulary=tokens.padded_vocabulary + 1)
        return read.architecture == replace(model, tokens=longer)

    def _files_say_the_rows(self) -> bool:
        """Whether no key of the format's configs is about them."""
        configs = [family.config for family in declared_families(require(self.format)) if family.config]
        return bool(configs) and not any(
            "tokens.padded_vocabulary" in line.claims for config in configs for line in config.entries
        )

    def _damaged(self, workshop: Workshop, how: str) -> Iterator[tuple[Entry, str]]:
        """Copies of a checkpoint, each with one tensor of one kind damaged, in its widest layout."""
        entries = self._entries()
        whole = workshop.copy(workshop.source(workshop.base()), self.quirks.layouts()[-1])
        for entry in one_of_each(entries.find(whole)):
            copy = workshop.new()
            shutil.copytree(whole, copy)
            there = replace(entry, file=entry.file.replace(whole, copy, 1))
            getattr(entries, how)(there)
            yield there, copy
            shutil.rmtree(copy)

    def _config(self, workshop: Workshop, config: str, model: Architecture | None = None) -> tuple[str, ConfigFile]:
        folder = workshop.copy(workshop.source(model or workshop.base()))
        return folder, ConfigFile(Path(folder, config))
