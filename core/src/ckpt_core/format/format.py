"""A format as an object: every hook follows from its folder, its config table and its tables of tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.architecture import Architecture, Facts, architecture_of, facts_of
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.config import Config
from ckpt_core.description import Description, RankTensors, Vocabulary
from ckpt_core.errors import CkptError, NotCarried, Refusal
from ckpt_core.format.folder import Folder, WeightFile
from ckpt_core.format.rows import EmbeddingRows
from ckpt_core.layout import Chosen, Native, Table, Tables, Value
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Ledger
from ckpt_core.plugins.hookspecs import hookimpl
from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest
from ckpt_core.plugins.tables import FamilyTables
from ckpt_core.reading import IGNORE_KEYS, given, without_ignored
from ckpt_core.rewrite import vocabulary_rows
from ckpt_core.rewrite.model import Rewritable
from ckpt_core.sizes import parse_size
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.containers import index_text
from ckpt_core.text import plural
from ckpt_core.writing import TargetBuilder

_VOCABULARY, _PADDED = "tokens.vocabulary", "tokens.padded_vocabulary"
VOCAB = Option("vocab", "the true vocabulary, where nothing says it", int, None, side="read")
SHARD_SIZE = Option("max_shard_size", "largest weight file, e.g. 5GB", str, "5GB", side="write")
_SHARED_BY_ACCIDENT = 2  # keys that configs of several frameworks have, such as vocab_size
Rewrite = Callable[[Rewritable, WriteRequest], Rewritable]


@dataclass(frozen=True)
class _Found:
    """What a folder holds: its config, as it is read, and its weights."""

    config: Mapping[str, Any] | None
    config_file: str
    sizes: Mapping[str, int]
    weights: Sequence[WeightFile]
    ledger: Ledger


class Format:
    """A format, which an entry point names: `example = "ckpt_example:FORMAT"`.

        FORMAT = Format(
            FormatInfo("example", "the Example framework: a torch file for each rank"),
            Folder(config="params.json", weights="consolidated.{tp:02}.pth"),
            CONFIG,
            TABLES,
        )

    `info` gets what follows from the rest: the family that `config` describes, the ranks that the names of files count, and
    the options `ignore_keys` (read), `vocab` (read, where the config does not say the true vocabulary) and `max_shard_size`
    (write, where there are shards). A true vocabulary that ranks do not divide is padded, to `multiple` rows for each tensor
    parallel rank that gets rows of its own, and further rows are cut off.

    Exceptions are functions. `rewrite` is asked before a model is written: it says with weights what the config can't say,
    by the exact rewrites of `rewrites`. `recognises` is asked whether a config is one of this format's, where that is not the
    file most of whose keys are in the table. `stage` says on which of `pp` pipeline stages a tensor lies, where layers are not
    shared out evenly. `logits` and `launch` are the hooks of these names.

    Where the rows of `tables` stand under choices, `choose` gets the config and the names of the tensors and says which were
    made; it may leave out those that nothing tells. Each choice is an option of its name: it overrides what was found out
    (read), and decides (write), where the source was not of this format.

    A plugin that needs more than that is a module with hooks: see the specifications.
    """

    def __init__(
        self,
        info: FormatInfo,
        folder: Folder,
        config: Config,
        tables: Tables | Sequence[Table],
        *,
        multiple: int = 1,
        choose: Callable[[Mapping[str, Any], Collection[str]], Chosen] | None = None,
        rewrite: Rewrite | None = None,
        recognises: Callable[[Mapping[str, Any]], bool] | None = None,
        stage: Callable[[Native, int, int], int] | None = None,
        logits: Callable[..., object] | None = None,
        launch: Callable[..., object] | None = None,
    ) -> None:
        self.folder, self.config, self.multiple = folder, config, multiple
        self.tables = tables if isinstance(tables, Tables) else Tables(tables)
        self._choose = choose or (lambda config, names: {})
        self._rewrite, self._recognises, self._stage = rewrite, recognises or self._has_its_keys, stage or even_stage
        self._claims = {claim for entry in config.entries for claim in entry.claims}
        self._rows = EmbeddingRows.of(self.tables.tables)
        options = [
            IGNORE_KEYS,
            *([VOCAB] if self._rows is not None and _VOCABULARY not in self._claims else []),
            *([SHARD_SIZE] if folder.shards else []),
            *(Option(one.name, one.help, tuple(map(str, one.values)), None) for one in self.tables.choices),
        ]
        taken = {option.name for option in info.options}
        self.info = replace(
            info,
            families=info.families or (config.name,),
            options=(*info.options, *(option for option in options if option.name not in taken)),
            parallel=info.parallel or folder.dimensions,
        )
        if logits is not None:
            self.ckpt_logits = hookimpl(logits)
        if launch is not None:
            self.ckpt_launch = hookimpl(launch)

    # --- hooks ---

    @hookimpl
    def ckpt_info(self) -> FormatInfo:
        """See the specification of the hook."""
        return self.info

    @hookimpl
    def ckpt_detect(self, path: str) -> str | None:
        """A folder that has the config, which says what the format's configs say, beside weights."""
        file = os.path.join(path, self.folder.config)
        weights = self.folder.first_weights(path) if os.path.isfile(file) else None
        if weights is None or self._config_in(file) is None:
            return None
        return f"{self.folder.config} beside {weights}"

    @hookimpl
    def ckpt_tables(self) -> Sequence[FamilyTables]:
        """What the one family of the format calls its keys and tensors."""
        return [FamilyTables(self.config.name, self.config, self.tables)]

    @hookimpl
    def ckpt_architecture(self, path: str) -> Architecture | None:
        """That of a config file of the format, whose vocabulary is padded by what the file says alone."""
        config = self._config_in(path)
        if config is None:
            return None
        facts, _ = self.config.read(self._without_counts(config), path)
        return architecture_of(self._with_rows(facts, None), path)

    @hookimpl
    def ckpt_notes(self, path: str) -> Mapping[str, object] | None:
        """Those of a config file of the format."""
        config = self._config_in(path)
        return None if config is None else self.config.read(self._without_counts(config), path)[1]

    @hookimpl
    def ckpt_read(self, path: str, request: ReadRequest) -> Description:
        """The folder at `path`: a config, or that of `--config`, and the weights of every rank."""
        if request.weights == "master":
            raise NotCarried("these files have no fp32 masters", file=path, fix="use --weights model")
        found = self._found(path, request)
        rows = self._rows.in_files(found.weights) if self._rows is not None else None
        notes: dict[str, Any] = {}
        evidence = []
        if found.config is None:
            architecture = given(request, path, rows=rows, problem=f"there is no {self.folder.config}")
            evidence.append("architecture: given with --config")
        else:
            facts, notes = self.config.read(found.config, found.config_file)
            architecture = architecture_of(self._with_rows(facts, rows), found.config_file)
            found.ledger.config(found.config_file, self.config.fates(found.config))
        names = {name for file in found.weights for name in file.tensors}
        choices = {**self._choose(found.config or {}, names), **self._asked(request.options)}
        evidence += [f"{name} {value}" for name, value in choices.items()]
        files = self.folder.files(path, found.weights, found.ledger)
        return Description(
            architecture=architecture,
            tables=self.tables,
            choices=choices,
            ranks=self._ranks(found),
            where=path,
            files=files if found.config is None else [*files, FileState.of(found.config_file)],
            config=None if found.config is None else found.config_file,
            vocabulary=self._vocabulary(architecture, found),
            notes=notes,
            sidecars=self.folder.sidecars(path),
            parallel=found.sizes,
            ledger=found.ledger,
            hints=choices,
            evidence=evidence,
            losses=[loss for file in found.weights for loss in file.losses],
        )

    @hookimpl
    def ckpt_write(self, checkpoint: Checkpoint, request: WriteRequest) -> Target:
        """The folder of a model. `Refusal` for what the config and the tables can't hold, or ranks can't divide."""
        asked = {"tp": request.tp, "pp": request.pp, "ep": request.ep}
        sizes = {dimension: asked[dimension] or 1 for dimension in self.folder.dimensions}
        model = self._as_written(checkpoint, request, sizes)
        config = self.config.write(self._said_facts(model.architecture), checkpoint.notes)
        said = self.config.said(config)
        config |= {key: sizes[dimension] for dimension, key in self.folder.counts.items()}
        hints = checkpoint.hints_for(self.info.name)
        known = {one.name: hints[one.name] for one in self.tables.choices if one.name in hints}
        choices = self.tables.chosen({**known, **self._asked(request.options)})
        builder = TargetBuilder(model, self.tables, request.dtype, choices=choices)
        if self.folder.dimensions:
            self._add_ranks(builder, sizes)
        else:
            self._add_whole(builder, parse_size(str(request.options.get(SHARD_SIZE.name) or SHARD_SIZE.default)))
        builder.documents[self.folder.config] = self.folder.config_text(config)
        taken = {*builder.documents, *(file.path for file in builder.files)}
        sidecars = {self.folder.companion(name): file for name, file in checkpoint.sidecars.items()}
        return builder.target(
            self.info.name,
            sidecars={name: file for name, file in sidecars.items() if name not in taken},
            parallel=sizes,
            decisions=choices,
            said=said,
            config=config,
        )

    def _asked(self, options: Mapping[str, Any]) -> dict[str, Value]:
        """The choices that options make."""
        values = {one.name: {str(value): value for value in one.values} for one in self.tables.choices}
        return {name: values[name][str(options[name])] for name in values if options.get(name) is not None}

    # --- reading ---

    def _config_in(self, file: str) -> Mapping[str, Any] | None:
        """The config in a file of the format's name; None if it is not one of this format's."""
        if os.path.basename(file) != os.path.basename(self.folder.config) or not os.path.isfile(file):
            return None
        try:
            config = self.folder.read_config(file)
        except (CkptError, OSError):
            return None
        return config if self._recognises(config) else None

    def _has_its_keys(self, config: Mapping[str, Any]) -> bool:
        """Whether most keys of a config are this format's, and not by accident: no two frameworks share all their words."""
        known = {*self.config.keys, *self.folder.counts.values()}
        common = known & config.keys()
        return 2 * len(common) > len(config) and len(common) >= min(_SHARED_BY_ACCIDENT + 1, len(known))

    def _found(self, path: str, request: ReadRequest) -> _Found:
        file, ledger = os.path.join(path, self.folder.config), Ledger()
        if not os.path.isfile(file):
            sizes, weights = self.folder.read_weights(path, {})
            return _Found(None, file, sizes, weights, ledger)
        config = self.folder.read_config(file)
        sizes, weights = self.folder.read_weights(path, self.folder.sizes_in(config, file))
        ledger.used("parallel layout", file, *(key for key in self.folder.counts.values() if key in config))
        config = without_ignored(self._without_counts(config), request, ledger, file)
        return _Found(config, file, sizes, weights, ledger)

    def _without_counts(self, config: Mapping[str, Any]) -> dict[str, Any]:
        counts = set(self.folder.counts.values())
        return {key: value for key, value in config.items() if key not in counts}

    def _with_rows(self, facts: Facts, rows: int | None) -> Facts:
        """The facts with the vocabulary that the config does not say: the rows of the embedding."""
        rows = rows if rows is not None else facts.get(_PADDED, facts.get(_VOCABULARY))
        if rows is not None and self._rows is not None:
            facts.setdefault(_PADDED, rows)
            facts.setdefault(_VOCABULARY, facts[_PADDED])
        return facts

    def _ranks(self, found: _Found) -> Iterator[RankTensors]:
        for file in found.weights:
            ranks = {
                dimension: (number, found.sizes[dimension])
                for dimension, number in file.numbers.items()
                if dimension != "pp"  # the stages of a rank hold its tensors together
            }
            yield RankTensors(ranks, file.tensors, file.path)

    def _vocabulary(self, architecture: Architecture, found: _Found) -> Vocabulary | None:
        """What is known of the true vocabulary where the config says the rows alone, or says nothing."""
        if architecture.tokens is None or (found.config is not None and _VOCABULARY in self._claims):
            return None
        multiple = self._multiple(found.sizes)
        return Vocabulary(lambda tokens: math.ceil(tokens / multiple) * multiple)

    def _multiple(self, sizes: Mapping[str, int]) -> int:
        """What the rows of the vocabulary are a multiple of."""
        divided = self._rows is not None and self._rows.divided
        return self.multiple * (sizes.get("tp", 1) if divided else 1)

    # --- writing ---

    def _as_written(self, checkpoint: Checkpoint, request: WriteRequest, sizes: Mapping[str, int]) -> Rewritable:
        model = Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files)
        if self._rewrite is not None:
            model = self._rewrite(model, request)
        tokens = model.architecture.tokens
        if tokens is None or self._rows is None:
            return model
        multiple = self._multiple(sizes)
        return vocabulary_rows(model, math.ceil(tokens.vocabulary / multiple) * multiple)

    def _said_facts(self, architecture: Architecture) -> Facts:
        """The facts that the config has to say: all but the vocabulary, where the embedding says it."""
        facts = facts_of(architecture)
        if self._rows is not None:
            for path in (_VOCABULARY, _PADDED):
                if path not in self._claims:
                    facts.pop(path, None)
        return facts

    def _add_ranks(self, builder: TargetBuilder, sizes: Mapping[str, int]) -> None:
        """A file for each rank. What expert ranks share lies in the files of all of them."""
        pp, layers = sizes.get("pp", 1), self._layers(builder.architecture, sizes.get("pp", 1))
        for numbers in self.folder.places(sizes):
            ranks = {dimension: (numbers[dimension], sizes[dimension]) for dimension in numbers if dimension != "pp"}
            natives = {
                name: native
                for name, native in builder.natives(ranks).items()
                if pp == 1 or self._stage(native, layers, pp) == numbers["pp"]
            }
            builder.add_file(self.folder.pattern.name(numbers), natives, self.folder.container)

    def _layers(self, architecture: Architecture, pp: int) -> int:
        stacks = list(architecture.stacks.values())
        if pp > 1 and len(stacks) != 1:
            raise Refusal("pipeline stages hold the layers of one stack", found=f"{len(stacks)} stacks")
        layers = sum(len(stack.layers) for stack in stacks)
        if pp > layers:
            raise Refusal(f"pp={pp} is more than {plural(layers, 'layer')}")
        return layers

    def _add_whole(self, builder: TargetBuilder, limit: int) -> None:
        """All tensors, in one file or in shards of at most `limit` bytes."""
        natives = builder.natives()
        sizes = {name: builder.bytes_of(native) for name, native in natives.items()}
        places = dict(zip(natives, self.folder.weight_names(sizes.values(), limit), strict=True))
        for file in dict.fromkeys(places.values()):
            builder.add_file(
                file, {name: natives[name] for name, place in places.items() if place == file}, self.folder.container
            )
        if len(builder.files) > 1:
            builder.documents[self.folder.index] = index_text(places, sum(sizes.values()))


def even_stage(native: Native, layers: int, pp: int) -> int:
    """The pipeline stage of a tensor, where stages have as many layers as each other, or the first ones one more: the
    embedding lies on the first, what comes after the layers on the last.
    """
    if native.layer is None:
        return 0 if native.row.canonical.startswith(("embedding.", "positions.", "embedding_norm.")) else pp - 1
    each, more = divmod(layers, pp)
    first = more * (each + 1)
    return native.layer // (each + 1) if native.layer < first else more + (native.layer - first) // each
