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
    subject=TEXT,
    reason=TEXT,
)
PROBLEM = record(problem=TEXT, file__=TEXT, found__=TEXT, expected__=TEXT, fix__=TEXT, anchor__=TEXT)
PROBLEMS = record(
    problem=TEXT,
    file__=TEXT,
    found__=TEXT,
    expected__=TEXT,
    fix__=TEXT,
    anchor__=said(TEXT, "the section of docs/troubleshooting.md about errors of this kind"),
    problems__=said(listed(PROBLEM), "each of several"),
    more__=said(COUNT, "how many were only counted"),
)
RANKS = said(named(COUNT), "tp, pp, ep: ranks")
ARGUMENT = record(
    name=TEXT,
    value=ANYTHING,
    words=listed(TEXT),
    default__=ANYTHING,
    taken=said(WHETHER, "the framework takes it from the checkpoint"),
    silent=said(WHETHER, "without it, the framework silently keeps its own"),
)
LAUNCH = {
    "framework": TEXT,
    "program": listed(TEXT),
    "command": listed(TEXT),
    "arguments": listed(ARGUMENT),
    "document__": said(TEXT, "the text of the file that the program reads"),
    "unsaid": listed(ARGUMENT),
    "notes": listed(TEXT),
}
MOVED_TRAINING = record(
    optimizer=TEXT, step=COUNT, next_lr=maybe(NUMBER), tensors=COUNT, bytes=COUNT, masters=TEXT, to_do=listed(TEXT)
)
DIFFERENCE = {
    "subject": TEXT,
    "left": TEXT,
    "right": TEXT,
    "elements__": said(COUNT, "how many differ"),
    "largest__": said(maybe(NUMBER), "by how much at most"),
}
APART = {
    "largest": said(NUMBER, "the largest difference of two logits"),
    "relative": NUMBER,
    "mean": NUMBER,
    "top1_agreement": said(NUMBER, "the part of positions whose most likely token is the same"),
}
NAME = record(native=TEXT, sentence=TEXT, ranks=TEXT, conditions=listed(TEXT))
FORMAT = record(
    name=TEXT,
    distribution=TEXT,
    broken=said(maybe(TEXT), "why it can't be used; then there is nothing more"),
    fix__=maybe(TEXT),
    summary__=TEXT,
    reads__=WHETHER,
    writes__=WHETHER,
    adapters__=WHETHER,
    families__=listed(TEXT),
    parallel__=listed(TEXT),
    before__=listed(TEXT),
    options__=listed(
        record(name=TEXT, values=ANYTHING, default=ANYTHING, side=said(TEXT, "read, write or both"), help=TEXT)
    ),
)
STEP = record(
    step=said(TEXT, "the name of the checkpoint in RUN"),
    state=said(TEXT, "converted, done before, failed or waiting"),
    source=TEXT,
    destination=TEXT,
    why__=said(TEXT, "why it waits"),
    seconds__=NUMBER,
    bytes_written__=COUNT,
    fingerprint__=TEXT,
    error__=PROBLEMS,
)
TENSOR = record(axes=named(COUNT), dtype=TEXT, statistics__=ANYTHING)

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
        dtypes=named(record(tensors=COUNT, bytes=COUNT)),
        tensors=said(named(TENSOR), "every canonical tensor"),
        not_finite__=said(listed(TEXT), "with --stats: tensors with NaNs or infinities"),
        notes=named(ANYTHING),
        sidecars=said(named(COUNT), "files that come along, with their bytes"),
        losses=listed(LOSS),
        ledger=said(
            listed(
                record(
                    fate=said(TEXT, "used, carried or left"),
                    what=TEXT,
                    why__=TEXT,
                    bytes__=COUNT,
                    files__=COUNT,
                    places__=named(listed(TEXT)),
                )
            ),
            "what became of every file and key of the source",
        ),
        files=listed(record(path=TEXT, bytes=COUNT)),
        launch__=TEXT,
        can_become=listed(record(format=TEXT, possible=WHETHER, refusals=listed(TEXT), losses=listed(LOSS))),
        page__=said(TEXT, "with --html: where the page was written"),
    ),
    "fragment": record(
        "`ckpt inspect` of what is not a model by itself, as an adapter is.",
        path=TEXT,
        format=TEXT,
        evidence=listed(TEXT),
        fragment=named(ANYTHING),
        lacks=PROBLEMS,
    ),
    "convert": record(
        "`ckpt convert`: what was done.",
        destination=TEXT,
        format=TEXT,
        parallel=RANKS,
        fingerprint=said(TEXT, "equal for equal models, in any format"),
        receipt=TEXT,
        tensors=COUNT,
        training__=MOVED_TRAINING,
        files=COUNT,
        bytes_read=COUNT,
        bytes_written=COUNT,
        decisions=named(ANYTHING),
        launch__=record(**LAUNCH),
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
        sidecars=listed(TEXT),
        tensors=COUNT,
        training__=MOVED_TRAINING,
        bytes_read=COUNT,
        bytes_written=COUNT,
        peak_memory=said(COUNT, "bytes of data in memory at most, the program's own not included"),
        workers=COUNT,
        losses=listed(LOSS),
        plan=said(TEXT, "the hash of the plan"),
        destination=TEXT,
        evidence=listed(TEXT),
        room=maybe(record(needed=COUNT, free=COUNT, missing=COUNT, mount=TEXT)),
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
        receipt=maybe(TEXT),
        tensors=record(equal=COUNT, as_recorded=COUNT),
        changed_since_conversion=listed(record(subject=TEXT, problem=TEXT)),
        differences=listed(record(**DIFFERENCE)),
        explained=said(listed(record(**DIFFERENCE, by=TEXT)), "differences that the receipt records"),
        remarks=listed(TEXT),
        logits=maybe(
            record(
                positions=COUNT,
                tolerance=NUMBER,
                **APART,
                first_apart=said(maybe(TEXT), "the first block whose output differs"),
                steps=listed(record(name=TEXT, largest=NUMBER, mean=NUMBER)),
                judges=said(named(record(framework=TEXT, **APART)), "each side, loaded by its own framework"),
                refused=named(record(framework=TEXT, why=TEXT)),
                by_reference_alone=named(record(framework=maybe(TEXT), why=TEXT)),
            )
        ),
        row_parallel__=ANYTHING,
    ),
    "selftest": record(
        "`ckpt selftest`: whether a format finds every element where it put it.",
        passed=WHETHER,
        tensors=COUNT,
        elements=COUNT,
        files=COUNT,
        compared=COUNT,
        misplaced=listed(record(tensor=TEXT, axis=TEXT, index=COUNT, found=TEXT)),
        departed=listed(record(tensor=TEXT, axis=TEXT, index=COUNT, found=TEXT, expected=TEXT)),
        sentences=listed(
            record(
                native=TEXT,
                canonical=TEXT,
                sentence=TEXT,
                division=TEXT,
                values=TEXT,
                under=TEXT,
                shown_by=listed(TEXT),
            )
        ),
        undeclared=listed(TEXT),
    ),
    "launch": record("`ckpt launch`: how a framework is started.", path=TEXT, **LAUNCH),
    "explain": record(
        "`ckpt explain`: what formats call the tensors and keys of a model.",
        family=TEXT,
        changes=named(ANYTHING),
        formats=listed(
            record(
                format=TEXT,
                class_=TEXT,
                refused=listed(TEXT),
                decisions=named(ANYTHING),
                rewrites=listed(TEXT),
                losses=listed(LOSS),
            )
        ),
        tensors=listed(record(parameter=TEXT, axes=TEXT, names=named(listed(NAME)), elsewhere=named(listed(NAME)))),
        facts=listed(record(fact=TEXT, value=ANYTHING, said=named(listed(record(keys=listed(TEXT), words=TEXT))))),
    ),
    "names": record("`ckpt explain --parameter`.", parameters=named(named(listed(NAME)))),
    "formats": record("`ckpt formats`.", formats=listed(FORMAT)),
    "format": {**FORMAT, "description": "`ckpt formats NAME`."},
    "doctor": record(
        "`ckpt doctor`: the state of the installation.",
        healthy=WHETHER,
        versions=named(TEXT),
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
        libraries=listed(record(name=TEXT, version=maybe(TEXT), unlocks=TEXT, install=TEXT)),
        machine=record(
            cores=COUNT,
            memory=maybe(COUNT),
            available=maybe(COUNT),
            disks=listed(record(path=TEXT, free=COUNT, mount=TEXT)),
        ),
    ),
    "follow": record(
        "`ckpt follow`: a line for each checkpoint; with --once one document of all.",
        run=TEXT,
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
