"""What `context/` says about a model: the fields of its config class, wherever they are said.

`io.json` is what NeMo loads. Until 2.0 it has every field; since 2.1 only those that were given, and the class has the
others, in values that changed from version to version. `model.yaml` is a dump of the same config with all fields.
So: what io.json gives counts; model.yaml says the rest, if it is there; else the class does, if all versions that may
have written the checkpoint agree. Where the two files disagree, someone changed one of them, and the user must say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    FormatError,
    ReadRequest,
    documents,
    errors,
    ledgers,
    reading,
    schema,
    torch_files,
    trees,
)
from ckpt_megatron.sdk import fiddle, transformer_config
from ckpt_nemo.nemo2.classes import defaults, gemma_of, is_known, refusal_of, short, versions
from ckpt_nemo.nemo2.config import Classes, table_of
from ckpt_nemo.nemo2.files import GRAPH, MODEL
from ckpt_nemo.nemo2.gemma import WINDOWS

# io.json: the TrainerContext of the run, and the arguments of its model (nemo/lightning/io/pl.py, 2.0 to 2.4)
_GRAPH = ledgers.Contents(
    {
        "root": "architecture",
        "objects": "architecture",
        "refcounts": "architecture",
        "version": "architecture",
        "root.model": "architecture",
        "root.model.config": "architecture",
        "root.model.tokenizer": "tokenizer",
        "root.*": ledgers.SETTINGS,
    }
)

_SENTINEL = "_HAS_DEFAULT_FACTORY"  # how model.yaml before 2.3 names a default that a function makes


@schema.dataclass
class ModelContext:
    """A model as its context describes it. `fields` are all that is known of its config; `file` says them."""

    classes: Classes
    fields: dict[str, Any]
    facts: Facts
    notes: dict[str, Any]
    table: Config
    tokenizer: fiddle.Call | None
    file: str
    evidence: list[str] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)

    def enter(self, ledger: ledgers.Ledger, context: trees.Tree) -> None:
        """Enter what became of the fields of the config, and of what else the graph in io.json has."""
        for name in (GRAPH, MODEL):
            if name in context:
                ledger.used("architecture", context.place(name))
        ledger.contents(context.place(GRAPH), self.sections, _GRAPH)
        ledger.config(self.file, self.table.fates(self.fields), section="model.config")


def read_context(context: trees.Tree, request: ReadRequest, ledger: ledgers.Ledger) -> ModelContext:
    """The model that the files in `context` describe, under the options `nemo_version`, `believe`, `predictors` and `ignore_keys`.

    `ledger` learns which fields were left out.
    """
    (graph, sections), dump = _graph(context), _dump(context)
    file = context.place(GRAPH)
    call = graph.arguments.get("config")
    if not isinstance(call, fiddle.Call):
        raise FormatError("the model has no config", file=file, found=torch_files.brief(call))
    classes = Classes(call.target, graph.target)
    reason = refusal_of(classes.config)
    if reason is not None:
        raise CkptError(f"models of {short(classes.config)} are not supported: {reason}", file=file)
    given = {name: fiddle.plain_of(value) for name, value in call.arguments.items()}
    said = _fields_of(dump, classes, context) if dump is not None else None
    given = reading.without_ignored(given, request, ledger, file, "model.config")
    if said is not None:
        said = reading.without_ignored(said, request, ledger, context.place(MODEL), "model.config")
    if reading.drops_predictors(request):
        given.pop("mtp_num_layers", None)
        if said is not None:
            said.pop("mtp_num_layers", None)
    described = _described(classes, given, said, context, request.options)
    tokenizer = graph.arguments.get("tokenizer")
    described.sections = sections
    described.tokenizer = tokenizer if isinstance(tokenizer, fiddle.Call) else None
    return described


def _graph(context: trees.Tree) -> tuple[fiddle.Call, dict[str, Any]]:
    """The call of the model class in io.json; and whatever else the graph has, by name."""
    file = context.place(GRAPH)
    document: Any = documents.parse_json(context.read(GRAPH), file)
    root = fiddle.read_graph(document, file)
    model = root.arguments.get("model") if isinstance(root, fiddle.Call) else None
    if not isinstance(model, fiddle.Call):
        raise FormatError(
            "the graph holds no model", file=file, found=torch_files.brief(model), expected="TrainerContext(model=...)"
        )
    sections = {f"root.{name}": value for name, value in root.arguments.items()}
    sections |= {f"root.model.{name}": value for name, value in model.arguments.items()}
    return model, {**document, **sections}


def _dump(context: trees.Tree) -> dict[str, Any] | None:
    if MODEL not in context:
        return None
    file = context.place(MODEL)
    value = transformer_config.plain(documents.parse_yaml(context.read(MODEL), file))
    if not isinstance(value, dict):
        raise FormatError("the file describes no model", file=file, found=torch_files.brief(value))
    return value


def _fields_of(dump: Mapping[str, Any], classes: Classes, context: trees.Tree) -> dict[str, Any]:
    """The fields in model.yaml, but those whose default a function would have made."""
    file, config = context.place(MODEL), dump.get("config")
    if not isinstance(config, dict):
        raise FormatError("the file describes no config", file=file, found=torch_files.brief(config))
    target = config.get("_target_")
    if not isinstance(target, str) or short(target) != short(classes.config):
        raise FormatError(
            "the two files of the context describe different classes",
            file=file,
            found=torch_files.brief(target),
            expected=f"{classes.config}, as in {GRAPH}",
        )
    return {key: value for key, value in config.items() if key != "_target_" and not _is_sentinel(value)}


def _is_sentinel(value: object) -> bool:
    return isinstance(value, dict) and _SENTINEL in str(value.get("_target_"))


def _described(
    classes: Classes,
    given: dict[str, Any],
    said: dict[str, Any] | None,
    context: trees.Tree,
    options: Mapping[str, Any],
) -> ModelContext:
    file = context.place(GRAPH if said is None else MODEL)
    if said is not None:
        fields = _agreed(classes, given, said, context, options) | _asked(classes, options)
        table = table_of(classes, fields)
        facts, notes = table.read(fields, file)
        described = ModelContext(classes, fields, facts, notes, table, None, file)
        described.evidence.append(
            f"architecture: {short(classes.config)} in {MODEL}, and {len(given)} fields in {GRAPH}"
        )
        if not is_known(classes.config):
            reason = f"no class of NeMo's; taken for what its fields and the model class {short(classes.model)} say"
            described.losses.append(ledgers.Loss("assumed", classes.config, reason))
        return described
    if not is_known(classes.config):
        raise CkptError(
            f"{short(classes.config)} is not a class of NeMo's, and {GRAPH} has only the fields that were given",
            file=file,
            found=classes.config,
            expected=f"a class of NeMo 2.0 to 2.4, or {MODEL} beside it",
        )
    readings = {
        version: _reading(classes, given | _asked(classes, options), version, file)
        for version in _candidates(classes, given, options, file)
    }
    first, *others = readings.values()
    differing = sorted({key for other in others for key in _differing(first, other)})
    if differing:
        raise CkptError(
            f"{GRAPH} leaves {', '.join(map(repr, differing))} to the class, and versions of NeMo differ",
            file=file,
            found="; ".join(
                f"{v}: " + ", ".join(f"{k} = {r.fields.get(k)!r}" for k in differing) for v, r in readings.items()
            ),
            expected=f"{MODEL}, which says all fields",
            fix="say which NeMo wrote the checkpoint: -o nemo_version=" + "|".join(readings),
        )
    first.evidence.append(
        f"architecture: {short(classes.config)} of NeMo {' or '.join(readings)}, and {len(given)} fields in {GRAPH}"
    )
    return first


def _asked(classes: Classes, options: Mapping[str, Any]) -> dict[str, Any]:
    """What an option says in place of a field."""
    asked = options.get(WINDOWS)
    return {WINDOWS: asked} if asked is not None and gemma_of(classes.config, classes.model) == 2 else {}


def _reading(classes: Classes, given: Mapping[str, Any], version: str, file: str) -> ModelContext:
    fields = {**defaults(classes.config, version), **given}
    table = table_of(classes, fields)
    facts, notes = table.read(fields, file)
    return ModelContext(classes, fields, facts, notes, table, None, file)


def _differing(one: ModelContext, two: ModelContext) -> Iterator[str]:
    """The fields whose values in another version make another model of one reading."""
    for key in one.fields.keys() | two.fields.keys():
        if one.fields.get(key) != two.fields.get(key):
            facts, notes = one.table.read({**one.fields, key: two.fields.get(key)}, one.file)
            if (facts, notes) != (one.facts, one.notes):
                yield key


def _candidates(classes: Classes, given: Mapping[str, Any], options: Mapping[str, Any], file: str) -> list[str]:
    """The versions of NeMo that may have written a graph. What they add to it shows some of them."""
    existing, wanted = versions(classes.config), options.get("nemo_version")
    if wanted is not None:
        if wanted not in existing:
            expected = ", ".join(existing)
            raise CkptError(f"NeMo {wanted} has no {short(classes.config)}", file=file, expected=expected)
        return [str(wanted)]
    if "pipeline_model_parallel_layout" in given:  # a field that MegatronStrategy enters since 2.4
        existing = [version for version in existing if version >= "v2.4.0"]
    return existing


def _agreed(
    classes: Classes, given: dict[str, Any], said: dict[str, Any], context: trees.Tree, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of both files. Raises every one that describes the model and in which they disagree."""
    believe = options.get("believe")
    fields = given | said if believe == MODEL else said | given
    problems = errors.Problems("the files of the context disagree")
    for key, meant in _meant(classes, given, options).items():
        if key not in said or said[key] in meant or key not in _telling(table_of(classes, fields)):
            continue
        if believe == GRAPH and all(value == meant[0] for value in meant):
            fields[key] = meant[0]
        elif believe != MODEL:
            of_class = "" if key in given else f", as {short(classes.config)} has it where {GRAPH} does not give it"
            problems.add(
                CkptError(
                    f"{MODEL} and {GRAPH} disagree about {key!r}",
                    file=context.place(MODEL),
                    found=repr(said[key])[:80],
                    expected=" or ".join(sorted({repr(value)[:80] for value in meant})) + of_class,
                    fix=f"NeMo itself reads {GRAPH} alone: -o believe={GRAPH}; or -o believe={MODEL} if that is right",
                )
            )
    problems.raise_any()
    return fields


def _meant(classes: Classes, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What io.json may mean: a field that it gives has one value, any other that which the class had in some version."""
    wanted = options.get("nemo_version")
    known = versions(classes.config) if is_known(classes.config) else []
    meant: dict[str, list[Any]] = {}
    for version in [wanted] if wanted in known else known:
        for key, value in defaults(classes.config, str(version)).items():
            meant.setdefault(key, []).append(value)
    return meant | {key: [value] for key, value in given.items()}


def _telling(table: Config) -> set[str]:
    """The fields that a table does something with."""
    return (
        set(table.keys)
        - {key for entry in transformer_config.HARMLESS for key in entry.keys}
        - {transformer_config.GENERATION}
    )
