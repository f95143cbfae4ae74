"""The schemas of all documents that `--json` prints, as JSON Schema. A key with `?` may be absent; no other keys occur.

Schemas are closed, so that a key which is printed and not described fails the tests. A program that reads documents should let
new keys pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.cli.output import SCHEMA_VERSION

Schema = dict[str, Any]

ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
WHETHER: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": ["number", "string"]}  # "nan", "inf" and "-inf", which JSON has no numbers for


def said(schema: Schema, words: str) -> Schema:
    return {**schema, "description": words}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def named(value: Schema) -> Schema:
    """An object whose keys are names of whatever the source holds."""
    return {"type": "object", "additionalProperties": value}


def record(_: str = "", /, **fields: Schema) -> Schema:
    """An object with just these keys; `key_` stands for a key that is a word of Python, `key__` is one that may be absent."""
    names = {name: name.rstrip("_") + ("?" if name.endswith("__") else "") for name in fields}
    required = [name for name in names.values() if not name.endswith("?")]
    body: Schema = {
        "type": "object",
        "properties": {names[name].rstrip("?"): schema for name, schema in fields.items()},
        "required": required,
        "additionalProperties": False,
    }
    return {**body, "description": _} if _ else body


LOSS = record(
    "What does not arrive, or was assumed.",
    kind=said(TEXT, "dropped, assumed, rounded, unsaid"),
    subject=said(TEXT, "the tensor, key or file"),
    reason=TEXT,
)
_PROBLEM = {
    "problem": said(TEXT, "what is wrong, in one sentence"),
    "file__": said(TEXT, "where"),
    "found__": TEXT,
    "expected__": TEXT,
    "fix__": said(TEXT, "what to do"),
    "anchor__": said(TEXT, "the section of docs/troubleshooting.md about errors of this kind"),
}
PROBLEM = record(**_PROBLEM)
PROBLEMS = record(
    **_PROBLEM,
    problems__=said(listed(PROBLEM), "each of several"),
    more__=said(COUNT, "how many were only counted"),
)
RANKS = said(named(COUNT), "tp, pp, ep: ranks")
ARGUMENT = record(
    name=said(TEXT, "as the framework calls it"),
    value=ANYTHING,
    words=said(listed(TEXT), "what says it on a command line"),
    default__=said(ANYTHING, "what the framework has unless it is told"),
    taken=said(WHETHER, "the framework takes it from the checkpoint"),
    silent=said(WHETHER, "without it, the framework silently keeps its own"),
)
LAUNCH = {
    "framework": TEXT,
    "program": said(listed(TEXT), "what the command begins with"),
    "command": said(listed(TEXT), "the whole command, word by word"),
    "arguments": said(listed(ARGUMENT), "what the framework is told"),
    "document__": said(TEXT, "the text of the file that the program reads"),
    "unsaid": said(listed(ARGUMENT), "what no argument of it can say"),
    "notes": said(listed(TEXT), "sentences for the user"),
}
MOVED_TRAINING = record(
    optimizer=TEXT,
    step=COUNT,
    next_lr=said(maybe(NUMBER), "the learning rate of the next step"),
    tensors=COUNT,
    bytes=COUNT,
    masters=said(TEXT, "what the optimizer steps"),
    to_do=said(listed(TEXT), "what no checkpoint can say"),
)
DIFFERENCE = {
    "subject": said(TEXT, "the fact, tensor or file"),
    "left": said(TEXT, "what the first has"),
    "right": said(TEXT, "what the second has"),
    "elements__": said(COUNT, "how many differ"),
    "largest__": said(maybe(NUMBER), "by how much at most"),
}
APART = {
    "largest": said(NUMBER, "the largest difference of two logits"),
    "relative": said(NUMBER, "it, in units of the largest logit"),
    "mean": said(NUMBER, "the mean difference"),
    "top1_agreement": said(NUMBER, "the part of positions whose most likely token is the same"),
}
NAME = record(
    native=said(TEXT, "the name in the format"),
    sentence=said(TEXT, "the layout sentence of one rank"),
    ranks=said(TEXT, "what is divided among which ranks"),
    conditions=said(listed(TEXT), "when it has this name"),
)
FORMAT = record(
    name=TEXT,
    distribution=TEXT,
    broken=said(maybe(TEXT), "why it can't be used; then there is nothing more"),
    fix__=maybe(TEXT),
    summary__=TEXT,
    reads__=WHETHER,
    writes__=WHETHER,
    adapters__=said(WHETHER, "adapters are written by themselves"),
    families__=said(listed(TEXT), "the models that it has tables of"),
    parallel__=said(listed(TEXT), "the ranks that the writer honours: tp, pp, ep"),
    before__=said(listed(TEXT), "formats that recognise its folders too, and that it goes before"),
    options__=listed(
        record(name=TEXT, values=ANYTHING, default=ANYTHING, side=said(TEXT, "read, write or both"), help=TEXT)
    ),
)
STEP = record(
    step=said(TEXT, "the name of the checkpoint in RUN"),
    state=said(TEXT, "converted, done before, failed or waiting"),
    source=said(TEXT, "its path"),
    destination=said(TEXT, "where its conversion is"),
    why__=said(TEXT, "why it waits"),
    seconds__=NUMBER,
    bytes_written__=COUNT,
    fingerprint__=TEXT,
    error__=PROBLEMS,
)
LEDGER = listed(
    record(
        fate=said(TEXT, "used, carried or left"),
        what=TEXT,
        why__=TEXT,
        bytes__=COUNT,
        files__=COUNT,
        places__=said(named(listed(TEXT)), "by file: the keys and tensors"),
    )
)
TENSOR = record(
    axes=said(named(COUNT), "the size of each axis, by its letter"),
    dtype=said(TEXT, "as it is stored"),
    statistics__=said(ANYTHING, "with --stats"),
)

DOCUMENTS: Mapping[str, Schema] = {
    "inspect": record(
        "`ckpt inspect`: what a checkpoint is.",
        path=TEXT,
        format=TEXT,
        evidence=said(listed(TEXT), "what decided the reading"),
        parallel=RANKS,
        masters=said(WHETHER, "fp32 masters exist; --weights master reads them"),
        training__=said(ANYTHING, "the state of the training, as in training.json of ir; with `tensors` and `bytes`"),
        architecture=said(ANYTHING, "as architecture.json of ir; it has a version of its own"),
        facts=said(named(ANYTHING), "the architecture, by dotted path"),
        parameters=said(named(COUNT), "`total`, and the elements of each group; padding not counted"),
        dtypes=said(named(record(tensors=COUNT, bytes=COUNT)), "what is stored as what"),
        tensors=said(named(TENSOR), "every canonical tensor"),
        not_finite__=said(listed(TEXT), "with --stats: tensors with NaNs or infinities"),
        notes=said(named(ANYTHING), "settings that change no output"),
        sidecars=said(named(COUNT), "files that come along, with their bytes"),
        losses=said(listed(LOSS), "what no target gets"),
        ledger=said(LEDGER, "what became of every file and key of the source"),
        files=listed(record(path=TEXT, bytes=COUNT)),
        launch__=said(TEXT, "what its framework takes from the checkpoint by itself, in one line"),
        can_become=said(
            listed(record(format=TEXT, possible=WHETHER, refusals=listed(TEXT), losses=listed(LOSS))),
            "what becomes of it in each format",
        ),
        page__=said(TEXT, "with --html: where the page was written"),
    ),
    "fragment": record(
        "`ckpt inspect` of what is not a model by itself, as an adapter is.",
        path=TEXT,
        format=TEXT,
        evidence=said(listed(TEXT), "what decided the reading"),
        fragment=said(named(ANYTHING), "what it is, by topic"),
        ledger__=said(LEDGER, "of an adapter: what becomes of every file and key when it is converted by itself"),
        lacks=said(PROBLEMS, "what it would take to read it as a model"),
    ),
    "convert": record(
        "`ckpt convert`: what was done.",
        destination=TEXT,
        format=TEXT,
        parallel=RANKS,
        fingerprint=said(TEXT, "equal for equal models, in any format"),
        receipt=said(TEXT, "its path"),
        tensors=COUNT,
        training__=said(MOVED_TRAINING, "the state of a training that went along"),
        files=said(COUNT, "how many were written"),
        bytes_read=COUNT,
        bytes_written=COUNT,
        decisions=said(named(ANYTHING), "what the format decided, and your options"),
        launch__=said(record(**LAUNCH), "how its framework is started"),
        losses=listed(LOSS),
        found=said(WHETHER, "it was there already, whole, and nothing was done"),
        seconds=NUMBER,
        bytes_per_second=COUNT,
        peak_memory=said(maybe(COUNT), "bytes, the program's own included"),
    ),
    "plan": record(
        "`ckpt convert --dry-run`: what would be done.",
        source=record(format=TEXT, path=TEXT, parallel=RANKS),
        target=record(format=TEXT, parallel=RANKS, decisions=named(ANYTHING), launch__=record(**LAUNCH)),
        files=listed(record(path=TEXT, bytes=COUNT)),
        documents=said(named(COUNT), "configs and the like, with their bytes"),
        sidecars=said(listed(TEXT), "files that go along"),
        tensors=COUNT,
        training__=said(MOVED_TRAINING, "the state of a training that goes along"),
        bytes_read=COUNT,
        bytes_written=COUNT,
        peak_memory=said(COUNT, "bytes of data in memory at most, the program's own not included"),
        workers=COUNT,
        losses=listed(LOSS),
        plan=said(TEXT, "the hash of the plan"),
        destination=TEXT,
        evidence=said(listed(TEXT), "what decided the reading"),
        room=said(
            maybe(record(needed=COUNT, free=COUNT, missing=COUNT, mount=TEXT)), "bytes on the disk of the destination"
        ),
    ),
    "diff": record(
        "`ckpt diff`: what differs.",
        equal=WHETHER,
        a=record(path=TEXT, format=TEXT),
        b=record(path=TEXT, format=TEXT),
        differences=listed(record(**DIFFERENCE)),
    ),
    "fingerprint": record(
        "`ckpt fingerprint`.",
        fingerprint=said(TEXT, "it begins with its version: `v2-`"),
        version=said(COUNT, "of how it is made; those of other versions are not compared"),
        path=TEXT,
        format=TEXT,
        tensors=COUNT,
    ),
    "verify": record(
        "`ckpt verify`: whether a conversion is what it should be.",
        passed=WHETHER,
        source=TEXT,
        destination=TEXT,
        receipt=said(maybe(TEXT), "its path"),
        tensors=record(equal=COUNT, as_recorded=said(COUNT, "changed as the receipt says")),
        changed_since_conversion=said(
            listed(record(subject=TEXT, problem=TEXT)), "files that are not as they were written"
        ),
        differences=said(listed(record(**DIFFERENCE)), "those that nothing explains"),
        explained=said(listed(record(**DIFFERENCE, by=TEXT)), "differences that the receipt records"),
        remarks=listed(TEXT),
        logits=maybe(
            record(
                positions=COUNT,
                tolerance=NUMBER,
                **APART,
                first_apart=said(maybe(TEXT), "the first block whose output differs"),
                steps=said(
                    listed(record(name=TEXT, largest=NUMBER, mean=NUMBER)),
                    "block by block, in the order of the forward pass",
                ),
                judges=said(named(record(framework=TEXT, **APART)), "each side, loaded by its own framework"),
                refused=said(named(record(framework=TEXT, why=TEXT)), "sides that their framework does not load"),
                by_reference_alone=said(
                    named(record(framework=maybe(TEXT), why=TEXT)), "sides that no framework judged"
                ),
            )
        ),
        row_parallel__=said(ANYTHING, "with --row-parallel: logits of sums over ranks against single products"),
    ),
    "selftest": record(
        "`ckpt selftest`: whether a format finds every element where it put it.",
        passed=WHETHER,
        tensors=COUNT,
        elements=COUNT,
        files=COUNT,
        compared=said(COUNT, "places that were held against each other"),
        misplaced=said(
            listed(record(tensor=TEXT, axis=TEXT, index=COUNT, found=TEXT)),
            "elements that are read where another was written",
        ),
        departed=said(
            listed(record(tensor=TEXT, axis=TEXT, index=COUNT, found=TEXT, expected=TEXT)),
            "elements that do not lie where the format's declared sentence puts them",
        ),
        sentences=said(
            listed(
                record(
                    native=TEXT,
                    canonical=TEXT,
                    sentence=TEXT,
                    division=said(TEXT, "what is divided among which ranks"),
                    values=TEXT,
                    under=said(TEXT, "the choice that it stands under"),
                    shown_by=said(listed(TEXT), "checkpoints of the framework itself that bear it out"),
                )
            ),
            "the declared sentences that were met",
        ),
        undeclared=said(listed(TEXT), "tensors of which nothing is declared"),
    ),
    "launch": record("`ckpt launch`: how a framework is started.", path=TEXT, **LAUNCH),
    "explain": record(
        "`ckpt explain`: what formats call the tensors and keys of a model.",
        family=said(TEXT, "the example model that is explained"),
        changes=said(named(ANYTHING), "facts in which the model differs from the example"),
        formats=listed(
            record(
                format=TEXT,
                class_=said(TEXT, "what the format calls this kind of model"),
                refused=said(listed(TEXT), "why it does not hold the model"),
                decisions=named(ANYTHING),
                rewrites=said(listed(TEXT), "what is said with other weights"),
                losses=listed(LOSS),
            )
        ),
        tensors=listed(
            record(
                parameter=TEXT,
                axes=TEXT,
                names=said(named(listed(NAME)), "by format"),
                elsewhere=said(named(listed(NAME)), "by format: names under other conditions"),
            )
        ),
        facts=listed(
            record(
                fact=TEXT,
                value=ANYTHING,
                said=said(named(listed(record(keys=listed(TEXT), words=TEXT))), "by format: the keys that say it"),
            )
        ),
    ),
    "names": record(
        "`ckpt explain --parameter`.", parameters=said(named(named(listed(NAME))), "by parameter and format")
    ),
    "formats": record("`ckpt formats`.", formats=listed(FORMAT)),
    "format": {**FORMAT, "description": "`ckpt formats NAME`."},
    "doctor": record(
        "`ckpt doctor`: the state of the installation.",
        healthy=WHETHER,
        versions=said(named(TEXT), "of each distribution of ckpt, and of Python"),
        mismatched=said(listed(TEXT), "distributions of another version than ckpt-core"),
        plugins=listed(
            record(
                name=TEXT,
                distribution=TEXT,
                broken=maybe(TEXT),
                fix__=maybe(TEXT),
                selfcheck__=said(TEXT, "passed, failed or not run"),
                by__=said(TEXT, "the example model that was traced, or why none was"),
                seconds__=NUMBER,
            )
        ),
        libraries=listed(
            record(
                name=TEXT,
                version=maybe(TEXT),
                unlocks=said(TEXT, "what it is for"),
                install=said(TEXT, "what brings it"),
            )
        ),
        machine=record(
            cores=COUNT,
            memory=said(maybe(COUNT), "bytes"),
            available=said(maybe(COUNT), "bytes of it that are free"),
            disks=listed(record(path=TEXT, free=COUNT, mount=TEXT)),
        ),
    ),
    "follow": record(
        "`ckpt follow`: a line for each checkpoint; with --once one document of all.",
        run=said(TEXT, "the folder that is followed"),
        steps=listed(STEP),
    ),
    "step": {**STEP, "description": "A line of `ckpt follow`."},
    "error": record("Any command that fails.", error=PROBLEMS),
}


def _whole(name: str, body: Schema) -> Schema:
    """A schema as `ckpt schema` prints it. All documents but those of the key `schema` itself begin with their name."""
    schema = {"const": f"{name}/{SCHEMA_VERSION}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{name}/{SCHEMA_VERSION}",
        **body,
        "properties": {"schema": schema, **body["properties"]},
        "required": ["schema", *body["required"]],
    }


SCHEMAS: Mapping[str, Schema] = {name: _whole(name, body) for name, body in DOCUMENTS.items()}
