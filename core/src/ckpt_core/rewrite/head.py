"""The token tables: how many rows they have, whether they are one, and what scales the logits; and models without a head."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.architecture import parameters, same_value
from ckpt_core.rewrite.model import Rewritable, scaled
from ckpt_core.tensors.assembly import with_rows


def vocabulary_rows(model: Rewritable, rows: int) -> Rewritable:
    """The token tables with `rows` rows: padding cut off, or zeros added. `rows` is at least the true vocabulary."""
    tokens = model.architecture.tokens
    if tokens is None or tokens.padded_vocabulary == rows:
        return model
    architecture = replace(model.architecture, tokens=replace(tokens, padded_vocabulary=rows))
    tensors = with_rows(model.tensors, parameters(architecture))
    return model.rewritten(architecture, tensors, f"vocabulary table of {rows} rows (was {tokens.padded_vocabulary})")


def untied_head(model: Rewritable) -> Rewritable:
    """A tied head written out: the head's matrix is a second copy of the embedding's."""
    head = model.architecture.head
    if head is None or not head.tied:
        return model
    architecture = replace(model.architecture, head=replace(head, tied=False))
    copy = replace(model.tensors["embedding.tokens.weight"], parameter=parameters(architecture)["head.weight"])
    return model.rewritten(architecture, {**model.tensors, "head.weight": copy}, "head untied: a copy of the embedding")


def tied_head(model: Rewritable) -> Rewritable:
    """A head that is a copy of the embedding as a tied one; while the embedding is read, the two are compared."""
    head, tokens = model.architecture.head, "embedding.tokens.weight"
    if head is None or head.tied or model.tensors["head.weight"].maps != model.tensors[tokens].maps:
        return model
    if any(model.tensors[name].merged for name in ("head.weight", tokens)):
        return model  # what is compared is what lies in files, and not what is computed of it
    tensors = dict(model.tensors)
    copy = tensors.pop("head.weight")
    tensors[tokens] = replace(tensors[tokens], copies=(*tensors[tokens].copies, *copy.blocks))
    return model.rewritten(
        replace(model.architecture, head=replace(head, tied=True)),
        tensors,
        "head tied to the embedding, whose copy it is",
    )


def folded_logit_scale(model: Rewritable) -> Rewritable:
    """Logits that nothing scales: the factor is multiplied into a head of its own, which a tied one becomes."""
    head = model.architecture.head
    if head is None or same_value(head.scale, 1.0):
        return model
    model = untied_head(model)
    tensors = {
        name: scaled(assembly, head.scale) if name == "head.weight" else assembly
        for name, assembly in model.tensors.items()
    }
    architecture = replace(model.architecture, head=replace(head, tied=False, scale=1.0))
    return model.rewritten(architecture, tensors, f"logit scale folded into the head (factor {head.scale:.9g})")


def normed_logit_scale(model: Rewritable, wanted: float) -> Rewritable:
    """Logits scaled by `wanted`: what differs is multiplied into the last norm, and the head stays as it is."""
    head, stack = model.architecture.head, model.architecture.decoder
    norm = stack.final_norm if stack else None
    if head is None or norm is None or not norm.weight or norm.zero_centred or same_value(head.scale, wanted):
        return model
    if stack is not None and stack.predictors is not None:
        return model  # they read what the last norm gives, too
    prefix = next(prefix for prefix, known in model.architecture.stacks.items() if known is stack)
    factor = head.scale / wanted
    tensors = {
        name: scaled(assembly, factor) if name.startswith(f"{prefix}final_norm.") else assembly
        for name, assembly in model.tensors.items()
    }
    architecture = replace(model.architecture, head=replace(head, scale=wanted))
    return model.rewritten(architecture, tensors, f"logit scale folded into the final norm (factor {factor:.9g})")


def folded_embedding_scale(model: Rewritable) -> Rewritable:
    """An embedding that nothing scales: the factor is multiplied into it, and a tied head's logits are divided by it."""
    tokens, head = model.architecture.tokens, model.architecture.head
    if tokens is None or same_value(tokens.scale, 1.0):
        return model
    name = "embedding.tokens.weight"
    tensors = {**model.tensors, name: scaled(model.tensors[name], tokens.scale)}
    architecture = replace(model.architecture, tokens=replace(tokens, scale=1.0))
    if head is not None and head.tied:
        architecture = replace(architecture, head=replace(head, scale=head.scale / tokens.scale))
    return model.rewritten(
        architecture, tensors, f"embedding scale folded into the embedding (factor {tokens.scale:.9g})"
    )


def without_head(model: Rewritable) -> Rewritable:
    """The model without its head: what the head reads is the output. Of a classifier with a dense layer, the linear one alone goes.

    This changes the model: it is never done unless asked for.
    """
    head, classifier = model.architecture.head, model.architecture.classifier
    classes = classifier.classes if classifier else None
    if head is None and classes is None:
        return model
    # BertModel and ViTModel have such a layer, and no class has a transform without logits
    kept = replace(classifier, classes=None) if classifier and classifier.hidden else None
    architecture = replace(model.architecture, head=None, classifier=kept)
    tensors = {name: model.tensors[name] for name in parameters(architecture)}
    said = ["the head over the vocabulary"] * (head is not None) + [f"the {classes} classes"] * (classes is not None)
    return model.rewritten(architecture, tensors, f"{' and '.join(said)} left out")
