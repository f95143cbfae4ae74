"""What a model *is*: a frozen, serialisable schema whose fields have executable meaning.

Nothing here names a framework. A field says what is computed ("the scores are
divided by ...", "the layer sees this many positions back"), never where a
framework keeps it. Two checkpoints with equal architectures and equal canonical
tensors compute the same function.

Every optional field defaults to "does not happen": no bias, no window, no cap.
A format that has no way to say a field can therefore be refused by name
whenever the field is away from its default (`ckpt_core.architecture.facts`).
"""

from __future__ import annotations

from enum import StrEnum

from ckpt_core.lean import dataclass

SCHEMA_VERSION = 1


class Activation(StrEnum):
    """The exact scalar function of an MLP. The two GELUs differ by up to 5e-4 per element: never mix them."""

    SILU = "silu"
    GELU_ERF = "gelu_erf"  # x * Phi(x)
    GELU_TANH = "gelu_tanh"  # tanh approximation, constants 0.7978845608 and 0.044715
    GELU_QUICK = "gelu_quick"  # x * sigmoid(1.702 x)
    RELU = "relu"
    RELU_SQUARED = "relu_squared"
    XIELU = "xielu"  # learned, of four numbers for each MLP: see `Mlp`


class RotaryKind(StrEnum):
    """How rotary frequencies are stretched; the names are those of transformers' `rope_type`."""

    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LONGROPE = "longrope"
    LLAMA3 = "llama3"
    PROPORTIONAL = "proportional"


class Pooling(StrEnum):
    """What a classifier reads of a sequence."""

    FIRST = "first"  # the first position
    LAST = "last"  # the last position that is not padding
    MEAN = "mean"  # the mean of all positions that are not masked
    EACH = "each"  # every position, each of which gets classes of its own
    SPAN = "span"  # every position: each class chooses one of them (where an answer starts, and where it ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation over the last axis.

    `kind` is `rms` (divide by the root mean square) or `layer` (subtract the mean first).
    `zero_centred`: the stored weight is gamma - 1, so the factor is 1 + weight (Gemma, layernorm1p).
    """

    kind: str
    eps: float
    weight: bool = True
    bias: bool = False
    zero_centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryScaling:
    """A stretching of rotary frequencies. Which fields a kind needs is in `SCALING_FIELDS`.

    `factor` is dimensionless; `original_positions` counts tokens; the `*_factors` of longrope
    hold one number per rotary frequency. `low_frequency_factor` is not above `high_frequency_factor`.
    """

    kind: RotaryKind
    factor: float | None = None
    original_positions: int | None = None
    max_positions: int | None = None
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None


# kind                    required                                                     allowed besides
# fmt: off
SCALING_FIELDS: dict[RotaryKind, tuple[frozenset[str], frozenset[str]]] = {
    RotaryKind.LINEAR:       (frozenset({"factor"}), frozenset()),
    RotaryKind.DYNAMIC:      (frozenset({"factor", "max_positions"}), frozenset()),
    RotaryKind.YARN:         (frozenset({"factor", "original_positions"}),
                              frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"})),
    RotaryKind.LONGROPE:     (frozenset({"original_positions", "short_factors", "long_factors"}),
                              frozenset({"factor", "attention_factor", "max_positions"})),
    RotaryKind.LLAMA3:       (frozenset({"factor", "original_positions", "low_frequency_factor", "high_frequency_factor"}),
                              frozenset()),
    RotaryKind.PROPORTIONAL: (frozenset(), frozenset({"factor"})),
}
# fmt: on
"""The fields of `RotaryScaling` that each kind needs, and those that it may have besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary positions: the first `fraction` of every head is rotated in (j, j + half) pairs.

    The pairing of a framework's *stored* rows (half-split or interleaved) is a matter of
    layout, not of meaning: canonical tensors are always half-split.

    `sections`: a position has three coordinates, time, row and column, which are the same number for a token of text, and so many
    pairs turn by each of them, one section after the other (m-rope of Qwen2-VL, 2024). `interleaved`: of every three pairs the second
    turns by the row and the third by the column, as long as their section lasts, and all others turn by time (Qwen3-VL, 2025).
    `axial`: a position has two coordinates, and half of the pairs turn by the row, the others by the column, each half with the
    frequencies of a head of half the size; `interleaved`: of the frequencies of the whole head the row has the first, the third and so
    on, and the column those between (Pixtral, 2024). Only a vision tower has such positions.
    """

    theta: float
    fraction: float = 1.0
    scaling: RotaryScaling | None = None
    sections: tuple[int, ...] | None = None
    interleaved: bool = False
    axial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeBias:
    """A learned bias per head and bucket of distance, added to the scores (T5)."""

    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """Queries that grow with their position: at position p, counted from 0, q is multiplied by 1 + scale * ln(1 + floor((p + shift) / interval))."""

    interval: int
    scale: float
    shift: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention with `groups` key-value heads, each shared by heads / groups query heads.

    `scale` multiplies q.k; None means head_dim ** -0.5. `window` counts the positions a query
    sees, itself included (None: all), and in a stack that is not causal as many to the other side. `softcap` c replaces scores s by c * tanh(s / c).
    `sinks`: a learned logit per head joins the softmax denominator.
    `chunk`: a query sees the positions of its own chunk of that many alone, counted from the start of the sequence. In a vision tower a
    chunk is a square of that many rows and columns of patches, counted from the first of both.
    `temperature` multiplies q last, after its norm and its rotation.
    `relative_bias_scale` multiplies the relative bias of this layer, shared or own.
    `head_scale`: a learned factor per head on the attention output.
    `norm` is applied to the input of the block, `out_norm` to its output before the residual sum.
    `qk_norm` is applied to q and k, per head, or over all heads at once if `qk_norm_whole`; before rotation, or after it if
    `qk_norm_after_rotary`.
    `out_gate`: the attention output is multiplied, element by element, by the sigmoid of one more projection of the block's
    input, which has a bias where q has one.
    `in_scale` multiplies the input of the block, normed already, and `out_scale` its output, with the bias.
    """

    heads: int
    groups: int
    head_dim: int
    norm: Norm | None = None
    out_norm: Norm | None = None
    scale: float | None = None
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    out_bias: bool = False
    qk_norm: Norm | None = None
    qk_norm_whole: bool = False
    qk_norm_after_rotary: bool = False
    rotary: Rotary | None = None
    alibi: bool = False
    relative_bias: RelativeBias | None = None
    relative_bias_scale: float = 1.0
    window: int | None = None
    chunk: int | None = None
    temperature: Temperature | None = None
    softcap: float | None = None
    sinks: bool = False
    head_scale: bool = False
    out_gate: bool = False
    in_scale: float = 1.0
    out_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Chooses the `top_k` positions that a query sees, of those that it may see (DeepSeek-V3.2, 2025).

    It has `heads` queries of `head_dim`, projections of the latent that the queries of the attention come from, and one key for all of
    them, a projection of the block's input, to which `norm` is applied. Of each, the first `rope_dim` elements of the attention are
    rotated as those are. The score of a position is the sum over the heads of relu(q.k), each times one more projection of the input.
    """

    heads: int
    head_dim: int
    top_k: int
    norm: Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): keys and values are expanded from one small latent.

    Each head's q and k have `nope_dim` unrotated and `rope_dim` rotated elements; the rotated
    key part is shared by all heads. Without `rotary` that part is not rotated either. `q_rank` None means q is not compressed.
    `scale` None means (nope_dim + rope_dim) ** -0.5.
    With an `indexer` a query sees the positions that it chooses; with `index_from_before`, those that the nearest layer below with an
    indexer chose.
    """

    heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    kv_norm: Norm
    rotary: Rotary | None = None
    q_rank: int | None = None
    q_norm: Norm | None = None
    norm: Norm | None = None
    out_norm: Norm | None = None
    scale: float | None = None
    bias: bool = False
    indexer: Indexer | None = None
    index_from_before: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """A gated delta net (Yang, Kautz and Hatamizadeh 2025): linear attention, which keeps a state instead of scores.

    The projections q, k and v each pass a causal convolution of their own, with a filter over `conv` positions per channel, and
    then SiLU. Every head of q and k is divided by its length (the square root of the sum of squares and 1e-6), and serves
    value_heads / key_heads value heads; q is multiplied by key_dim ** -0.5.

    Each value head has a state S of `key_dim` x `value_dim`, zero at first. A position multiplies it by
    exp(-exp(a_log) * softplus(a + dt_bias)), then adds k (x) beta * (v - S^T k) with beta = `beta_scale` * sigmoid(b), and has
    the output S^T q. `head_norm` is applied to the output of each head, which is then multiplied by SiLU of the projection z, or by
    its sigmoid with `sigmoid_gate`.

    `decay_rank`: each of the `key_dim` rows of S decays by an a and a dt_bias of its own, and a comes from the input through a latent of that
    rank (Kimi delta attention, 2025). `gate_rank`: z comes from the input through a latent of that rank.

    `norm` is applied to the input of the block, `out_norm` to its output before the residual sum.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    head_norm: Norm
    norm: Norm | None = None
    out_norm: Norm | None = None
    beta_scale: float = 1.0
    decay_rank: int | None = None
    gate_rank: int | None = None
    sigmoid_gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba:
    """A Mamba-2 block (Dao and Gu 2024): a state space, whose decay, input and output depend on what is read.

    The projections x, b and c of the block's input each pass a causal convolution of their own, with a filter over `conv` positions
    per channel (and a bias, if `conv_bias`), and then SiLU. One b and one c of `state` elements serve the heads / groups heads of
    a group.

    Each head has a state S of `head_dim` x `state`, zero at first. With step = softplus(dt + dt_bias), a position multiplies it by
    exp(-exp(a_log) * step), then adds step * x (x) b, and has the output S c + skip * x, with one a_log, dt_bias and skip per head.
    The output is multiplied by SiLU of the projection z; then `gated_norm` is applied to `norm_groups` equal parts of all channels,
    each by itself (before it is multiplied, with `norm_before_gate`). `bias`: the projections z, x, b, c and dt, and the one of the
    output, have biases.

    `in_scale` multiplies the input of the block, normed already, the five numbers of `scales` what is projected to z, x, b, c and dt
    (with the biases), and `out_scale` the output, with its bias (Falcon-H1, 2025).

    `norm` is applied to the input of the block, `out_norm` to its output before the residual sum.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    conv: int
    norm: Norm | None = None
    out_norm: Norm | None = None
    gated_norm: Norm | None = None
    norm_groups: int = 1
    norm_before_gate: bool = False
    conv_bias: bool = False
    bias: bool = False
    in_scale: float = 1.0
    scales: tuple[float, ...] | None = None
    out_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Chooses `top_k` experts per token.

    `score` is `softmax` or `sigmoid` of the router logits, in fp32. `normalise` divides the chosen
    scores by their sum (softmax over the chosen logits is the same thing); `scale` then multiplies them.
    `correction_bias`: a learned offset that takes part in choosing but not in weighting.
    `groups`/`group_top_k`: only experts of the best groups are eligible; `group_score` says how a
    group is scored ("max", or "top2" for the sum of its two best).
    `on_input`: a share multiplies what the expert reads, and not what it returns.
    `margin`: the experts are chosen one after the other, each the best of those that are left, of logit b; its share is its softmax
    among all experts whose logit l is near, (b - l) / max(|l|, b) <= 2 margin, but for those chosen before it (SparseMixer, 2023).
    """

    top_k: int
    score: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    bias: bool = False
    correction_bias: bool = False
    groups: int | None = None
    group_top_k: int | None = None
    group_score: str = "max"
    on_input: bool = False
    margin: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExpert:
    """An expert every token passes, `gate`d by a sigmoid of a learned projection or not."""

    ffn: int
    gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """A mixture of `experts` MLPs of width `ffn`.

    `latent`: the experts read a projection of the block's input to that many elements, and the sum of what they say is projected
    back to the hidden size; router and shared expert read the block's input itself.
    """

    experts: int
    ffn: int
    router: Router
    shared: SharedExpert | None = None
    latent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """The feed-forward block: down(act(gate(x)) * up(x)) if `gated`, else down(act(up(x))).

    Exactly one of `ffn` (a dense block of that width) and `moe` is given.
    `up_bias` covers gate and up. `clamp` c of a gated block cuts the gate above c, and up to -c .. c; `up_offset` is added to up after that.
    `gate_scale` multiplies the gate before that and before its activation, and `out_scale` the output of the block, with its bias.
    Experts and shared experts are such blocks too.

    XIELU (Huang and Schlag 2024) of x, with the learned numbers a, b, `slope` and `edge`: softplus(a) x^2 + slope x where x > 0, else
    (slope + softplus(b)) (exp(min(x, edge)) - 1 - x) + slope x. Only a dense block has it.
    """

    activation: Activation
    gated: bool
    ffn: int | None = None
    moe: Moe | None = None
    norm: Norm | None = None
    out_norm: Norm | None = None
    up_bias: bool = False
    down_bias: bool = False
    clamp: float | None = None
    up_offset: float = 0.0
    gate_scale: float = 1.0
    out_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block: x += attention(norm(x)); [x += cross_attention(norm(x), encoder)]; x += mlp(norm(x)).

    `parallel`: attention and MLP read the same x and are added together. `shared_norm`: in a
    parallel layer the MLP reads the output of the attention's norm. `residual_from_norm`: the
    residual is taken from the norm's output. `layer_scale`: a learned factor per channel on each block's output.
    `residual_scale`: one number, by which each block's output is multiplied before it is added.
    `norm_after_sum`: a block's `out_norm` is applied to the sum of its output and the residual, and not to its output (BERT).
    At most one of `attention`, `latent_attention`, `delta` and `mamba` is given: the block that mixes positions. A layer may have
    that block alone, or an MLP alone. Only `mamba` may stand beside `attention`: both then read the output of the attention's norm, and
    are added together (Falcon-H1).
    """

    mlp: Mlp | None = None
    attention: Attention | None = None
    latent_attention: LatentAttention | None = None
    delta: DeltaNet | None = None
    mamba: Mamba | None = None
    cross_attention: Attention | None = None
    parallel: bool = False
    shared_norm: bool = False
    residual_from_norm: bool = False
    layer_scale: bool = False
    residual_scale: float = 1.0
    norm_after_sum: bool = False

    @property
    def moe(self) -> Moe | None:
        """The mixture of experts of its MLP, if it has one."""
        return None if self.mlp is None else self.mlp.moe

    @property
    def mixers(self) -> tuple[tuple[str, Attention | LatentAttention | DeltaNet | Mamba], ...]:
        """The blocks that mix positions, each after what the names of its parameters begin with; none in a layer that has an MLP alone."""
        found = (
            ("attention", self.attention),
            ("attention", self.latent_attention),
            ("delta", self.delta),
            ("mamba", self.mamba),
        )
        return tuple((name, block) for name, block in found if block is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A learned table of `count` absolute positions, added to the embeddings; row p serves position p - `offset`.

    `padding`: tokens of this id are not counted, and take the row before the first position (RoBERTa). None: every token is counted.
    """

    count: int
    offset: int = 0
    padding: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictors:
    """`count` further layers, each of which predicts one token more (multi-token prediction). The model's own logits do not depend on them.

    Predictor k (from 0) takes f, the output of the stack after its final norm, or of the predictor before it, and e, the embedding
    of the token k + 1 positions later: y = out_norm(layer(embed(embed_norm(e)) + hidden(hidden_norm(f)))). `embed` and `hidden` are
    learned matrices, `layer` is built as the last layer of the stack is and counts positions from 0 on as that does, and
    the model's head makes of y the logits of the token after the one whose embedding it took.
    """

    count: int
    embed_norm: Norm
    hidden_norm: Norm
    out_norm: Norm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A tower of layers. `causal`: a position sees only earlier ones and itself.

    `relative_bias` is one table for the attention of every layer, `cross_relative_bias` one for every cross attention.
    """

    layers: tuple[Layer, ...]
    causal: bool
    positions: Positions | None = None
    input_norm: Norm | None = None
    final_norm: Norm | None = None
    relative_bias: RelativeBias | None = None
    cross_relative_bias: RelativeBias | None = None
    predictors: Predictors | None = None

    @property
    def blocks(self) -> dict[str, Layer]:
        """Every layer by what the names of its parameters begin with: `layers.3`, and `predictors.0.layer`."""
        further = range(self.predictors.count if self.predictors else 0)
        return {
            **{f"layers.{index}": layer for index, layer in enumerate(self.layers)},
            **{f"predictors.{index}.layer": self.layers[-1] for index in further},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The token embedding. `vocabulary` tokens are real; the table holds `padded_vocabulary` rows.

    Rows beyond the vocabulary exist for divisibility only and take no part in fingerprints.
    `scale` multiplies the embedding; `norm` follows it, before positions are added. A token is of one of `types` types (segment A
    or B of BERT; the first unless it is said), and a row of a second table, one for each type, is added before the norm. 0: no types.
    """

    vocabulary: int
    padded_vocabulary: int
    scale: float = 1.0
    norm: Norm | None = None
    types: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """Images cut into `patch` x `patch` squares, row-major, each projected to the hidden size.

    `class_tokens` learned vectors go before the patches.
    """

    height: int
    width: int
    patch: int
    channels: int
    bias: bool = True
    class_tokens: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """What makes embeddings of a language model of what a vision tower says of its patches.

    A square of `merge` x `merge` neighbouring patches becomes one vector: what the tower says of them side by side, row after row, or
    with `mean` the mean of it. `norm` is applied to each patch before that, or with `norm_merged` to the vector, which a matrix then
    folds to `folded` elements, if there is one (Mistral 3), with a `fold_bias` or without. `refined` follows: gelu(norm(W x)) with a
    square matrix W and its norm, of the erf form (GLM-4.5V). The embedding is then down(act(up(x))), with `ffn` elements between
    the two, if it is `gated` down(act(gate(x)) * up(x)), or down(x) where there is no `ffn`. `bias`: these matrices have one.
    """

    merge: int
    norm: Norm | None = None
    norm_merged: bool = False
    mean: bool = False
    folded: int | None = None
    fold_bias: bool = False
    refined: Norm | None = None
    gated: bool = False
    ffn: int | None = None
    activation: Activation | None = None
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """A tower that reads images, for a language model that reads what it says of them in place of the embeddings of `token`.

    Images are cut into squares of `patch` x `patch` pixels of `channels`, over `frames` successive frames (a still image is its own
    next frame), each projected to `hidden`, with a `bias` or without. Each such layer of frames passes `stack` by itself, and
    `projector` makes of it the embeddings of an image, row after row. `norm` is applied to what a patch is projected to. `positions` of the stack are a square table,
    which is stretched to the rows and columns of the image's patches: bilinear, corners on corners, or with `cubic` bicubic, edges on edges. `image`: every image has so many pixels on each side; None: rows and columns
    of any number that the projector can merge.

    `taps`: layers of the stack, what comes out of which passes a projector of its own, built as `tapped` says; that of the k-th tap is
    added to the residual stream of the language model after its layer k, where the image is (deepstack, Qwen3-VL 2025).
    `video_token` stands for the frames of a video, as `token` for images. `both_ways`: the tokens of one image see each other in the
    language model, also those that come later (Gemma 3).
    """

    hidden: int
    patch: int
    channels: int
    stack: Stack
    projector: Projector
    token: int
    frames: int = 1
    bias: bool = False
    norm: Norm | None = None
    cubic: bool = False
    image: int | None = None
    taps: tuple[int, ...] = ()
    tapped: Projector | None = None
    video_token: int | None = None
    both_ways: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A dense layer from hidden to hidden, with a `bias` or without, an activation and a norm (the head of BERT)."""

    activation: Activation
    norm: Norm
    bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Logits over the vocabulary. `tied`: the matrix is the token embedding. `scale` multiplies them, before a bias is added.

    `transform` comes before the matrix.
    """

    tied: bool
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    transform: Transform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """Logits over `classes` from the pooled sequence; `hidden` adds dense + tanh before, or `transform` its layers.

    `classes` None: there are no logits, and what is pooled is the output (ViTModel with its pooler). Beside a head over the
    vocabulary, both compute logits (BERT while it is pretrained).
    `padding` is the token that pooling LAST does not count: the last position with another token is read. None: the last position is.
    """

    classes: int | None = None
    hidden: bool = False
    pooling: Pooling = Pooling.FIRST
    bias: bool = True
    padding: int | None = None
    transform: Transform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A whole model: `hidden` is the width of the residual stream; a stack that is None does not exist.

    A model that reads images alone has `patches`; a language model that reads them between its tokens has `vision`.
    """

    hidden: int
    tokens: Tokens | None = None
    patches: Patches | None = None
    vision: Vision | None = None
    encoder: Stack | None = None
    decoder: Stack | None = None
    head: Head | None = None
    classifier: Classifier | None = None

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks by canonical prefix: "" for the only one, else "encoder." and "decoder."."""
        both = {"encoder.": self.encoder, "decoder.": self.decoder}
        present = {prefix: stack for prefix, stack in both.items() if stack is not None}
        return present if len(present) == 2 else {"": stack for stack in present.values()}

    @property
    def towers(self) -> dict[str, Stack]:
        """The stacks, and that of a vision tower as "vision."."""
        return {**self.stacks, **({"vision.": self.vision.stack} if self.vision else {})}
