"""The architecture in a file of torchtitan's own, which `--config` may be given."""

from __future__ import annotations

from ckpt_core.sdk import Architecture, Refusal, architecture_of, documents
from ckpt_fsdp.titan.args import table_of
from ckpt_fsdp.titan.models import model_of
from ckpt_fsdp.titan.modules import read_tree, tree_in


def architecture_in(path: str) -> Architecture | None:
    """The architecture in a dump of arguments (until 0.2) or in a config of modules (since 0.3); None if the file is neither."""
    document = documents.read_json_object(path) if path.endswith(".json") else {}
    if (table := table_of(document)) is not None:
        return architecture_of(table.read(document, path)[0], path)
    if (found := tree_in(document)) is None:
        return None
    name, model = found
    architecture = architecture_of(read_tree(name, model, path), path)
    built = model_of(architecture, None, path)
    if name not in (None, built):
        # names decide which elements of a head are rotated together
        raise Refusal(
            f"the model is called {name} and built as {built}", file=path, fix="give a config.json of transformers"
        )
    return architecture
