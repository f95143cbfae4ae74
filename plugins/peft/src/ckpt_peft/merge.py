"""The model that an adapter makes of its base: for every tensor of the adapter, where in the model it belongs.

    a pair A, B            added to the weight of its module (`lazy.LowRank`), whatever tensor of the base that lies in
    a bias of B            added to the bias
    a saved tensor         takes the place of the base's, rounded to its dtype, as PEFT loads it into that module

PEFT computes in float32 and rounds once; a parameter (`target_parameters`) and an embedding have their product rounded first
(peft 0.21.2, tuners/lora/layer.py: `ParamWrapper.get_delta_weight`, `Embedding.merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace

from ckpt_core.sdk import Architecture, CkptError, FormatError, Refusal, disk, dtypes, errors, layouts, lazy, schema
from ckpt_hf.sdk import ModelInMemory
from ckpt_peft.keys import BIAS, MAGNITUDE, AdaptedModule, Contents, NamedTensor
from ckpt_peft.settings import Settings, saved_as

EMBEDDING, HEAD = "embedding.tokens.weight", "head.weight"
_BASE_LAYER = ".base_layer"
_FLOATS = ("fp32", "bf16", "fp16")


@schema.dataclass
class Merger:
    """A model while an adapter is merged into it. `states` are the files of the adapter. `exact` keeps the float32 sums.

    `crossed`: how the pairs of fused experts lie, see `Target`; None where the adapter has none whose shapes say it.
    """

    model: ModelInMemory
    settings: Settings
    file: str
    states: Sequence[disk.FileState]
    exact: bool
    architecture: Architecture = field(init=False)
    tensors: dict[str, lazy.LazyParameter] = field(init=False)
    updates: dict[str, list[lazy.LowRank]] = field(default_factory=dict)
    adapted: list[Target] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)
    as_one: bool = field(init=False)
    crossed: bool | None = field(init=False, default=None)
    problems: errors.Problems = field(init=False)

    def __post_init__(self) -> None:
        self.architecture, self.tensors = self.model.architecture, dict(self.model.tensors)
        self.as_one = self.settings.tied
        self.problems = errors.Problems(f"merging {self.file}")

    # --- whole tensors -------------------------------------------------------------------------------------------------

    def replace_saved(self, contents: Contents) -> None:
        """Put the saved tensors in the place of the base's: first those that PEFT loads into the model itself, which a tied head shares,
        and then those of the copies that `modules_to_save` makes of modules, which it does not."""
        own = [name for name in contents.saved if name not in contents.inside and self.settings.saves(name)]
        for names in ([name for name in contents.saved if name not in own], own):
            found: dict[str, list[tuple[layouts.Native, NamedTensor]]] = {}
            for name in names:
                native, named = self.model.names.get(name), contents.saved[name]
                if native is None:
                    self.problems.add(self._unknown(name, named))
                elif native.shape != named.shape:
                    self.problems.add(self._other_shape(named, native.shape, name))
                elif native.row.via is not None:
                    self.problems.add(self._mapped(named))
                elif _is_alias(native):
                    self.problems.add(self._alias(named))
                else:
                    if names is own:
                        try:
                            self._check_alone(native, named)
                        except CkptError as error:
                            self.problems.add(error)
                    self.saved.append(name)
                    for parameter in {piece.parameter for piece in native.pieces}:
                        place = self._place(
                            parameter, native, names is own and "modules_to_save made a copy of one of them"
                        )
                        found.setdefault(place, []).append((native, named))
            for parameter, parts in found.items():
                self._replace(parameter, parts)

    def _place(self, parameter: str, native: layouts.Native, apart: str | bool) -> str:
        """The parameter that a tensor of the model is changed in. `apart` says why the head of a tied model is no longer the embedding, if it is
        not: unless `ensure_weight_tying` had both trained as one."""
        if parameter != EMBEDDING:
            return parameter
        if apart and self._is_tied and not self.as_one:
            self._untie(str(apart))
        return HEAD if _is_tied_head(native) and not self._is_tied else EMBEDDING

    def _replace(self, parameter: str, parts: Sequence[tuple[layouts.Native, NamedTensor]]) -> None:
        base = self.tensors[parameter]
        builder = lazy.ParameterBuilder({parameter: base.parameter}, self.file)
        copied = any(
            not native.row.copy for native, _ in parts
        )  # a head that is still tied must be a copy of the embedding
        for native, named in parts:
            inside = (piece for piece in native.pieces if piece.parameter in (parameter, EMBEDDING))
            pieces = tuple(layouts.Part(parameter, piece.tile) for piece in inside)
            whole = replace(native, pieces=pieces, row=replace(native.row, copy=native.row.copy and copied))
            builder.add(whole, named.shards)
        try:
            (held,) = builder.finish().values()
        except CkptError as error:
            self.problems.add(error)
            return
        dtype = _dtype_of(base)
        same = held.dtype == dtype or self.exact
        self.tensors[parameter] = held if same else _merged(held, (), dtype)

    def check_again(self, contents: Contents) -> None:
        """Raise an error for a tensor that is saved twice and not alike."""
        for name, named in contents.again.items():
            if not lazy.are_equal(named.shards, contents.saved[name].shards, self.states):
                self.problems.add(
                    FormatError(
                        f"{named.key!r} and {contents.saved[name].key!r} differ",
                        file=self.file,
                        expected="one tensor under both names",
                    )
                )

    # --- products ------------------------------------------------------------------------------------------------------

    def add_all(self, adapted: Sequence[AdaptedModule]) -> None:
        """Enter what the pairs of all modules add to the model.

        With `ensure_weight_tying` PEFT makes the pair of the head of views of the embedding's. Where the base is bf16 or fp16 it then casts
        each of the four to float32, and they are trained apart (peft 0.21.2, `cast_adapter_dtype` after `LoraLayer.update_layer`).
        """
        if self.as_one and self._is_tied and _dtype_of(self.tensors[EMBEDDING]).name in ("bf16", "fp16"):
            heads = {name.removesuffix(".weight") for name, native in self.model.names.items() if _is_tied_head(native)}
            pairs = [
                (head, tokens)
                for head in adapted
                for tokens in adapted
                if head.path in heads and not head.embedding and tokens.embedding
            ]
            if not all(self._is_one_pair(head, tokens) for head, tokens in pairs):
                self.as_one = False
                self.rewrites.append(
                    "ensure_weight_tying is true, and the pairs of head and embedding are two: both are merged"
                )
        self.crossed = self._are_crossed(adapted)
        for one in adapted:
            self.add(one)

    def _are_crossed(self, adapted: Sequence[AdaptedModule]) -> bool | None:
        """How the pairs of fused experts lie by their shapes. One release of PEFT wrote all of them, and the experts of a class are kept alike."""
        ways = set()
        for one in adapted:
            fits = [target for name in self._names_of(one) for target in self._fits(one, name)]
            if len(fits) == 1 and fits[0].experts > 1:
                ways.add(fits[0].crossed)
        return ways.pop() if len(ways) == 1 else None

    def add(self, adapted: AdaptedModule) -> None:
        """Enter what the pair of a module adds to the model."""
        try:
            target = self._target(adapted)
            self._check(target)
        except CkptError as error:
            error.file = error.file or self.file
            self.problems.add(error)
            return
        self.adapted.append(target)
        if _is_tied_head(target.native) and self._is_tied and self.as_one:
            return  # it is the pair of the embedding, under another name: see `check_whole`
        scale, magnitude = self.settings.scale(target.looked_up), adapted.tensors.get(MAGNITUDE)
        for piece, down, up, tile in target.products():
            self._update(
                # PEFT's own merge writes into the tensor that both share, and so changes the other one as well.
                self._place(piece, target.native, "the adapter changes one of them"),
                lazy.LowRank(
                    up,
                    down,
                    scale,
                    tile,
                    magnitude=None if magnitude is None else magnitude.lazy(),
                    turned=target.out > target.into,
                    narrowed=target.narrowed and not self.exact and magnitude is None,
                ),
            )
        if (bias := adapted.tensors.get(BIAS)) is not None:
            self._add_bias(target, bias, scale)

    def _add_bias(self, target: Target, bias: NamedTensor, scale: float) -> None:
        name = f"{target.adapted.path}.bias"
        native = self.model.names.get(name)
        if native is None or native.shape != bias.shape:
            self.problems.add(
                Refusal(
                    f"{bias.key!r} has no bias that it could be added to",
                    file=self.file,
                    found="no bias in the base" if native is None else f"shape {bias.shape}",
                    expected=f"{name} in the base" if native is None else f"shape {native.shape} of {name}",
                    fix="no class of transformers has this bias alone: the adapter can be used beside its base only"
                    if native is None
                    else "give the base that it was trained on",
                )
            )
            return
        column = NamedTensor(bias.key, (*bias.shape, 1), tuple(_column(shard) for shard in bias.shards))
        one = lazy.LazyParameter(
            schema.Parameter("one", (schema.Axis("rank", 1), schema.Axis("in", 1))), dtypes.FP32, (), fill=1.0
        )
        for piece in native.pieces:
            tile = piece.tile._replace(native_base=(*piece.tile.native_base, 0))
            self._update(piece.parameter, lazy.LowRank(column.lazy(), one, scale, tile))

    def _untie(self, why: str) -> None:
        head = self.architecture.head
        assert head is not None
        self.architecture = replace(self.architecture, head=replace(head, tied=False))
        parameter = schema.parameters(self.architecture)[HEAD]
        self.tensors[HEAD] = replace(self.tensors[EMBEDDING], parameter=parameter)
        self.rewrites.append(f"the head is untied from the embedding, as {why}")

    @property
    def _is_tied(self) -> bool:
        return self.architecture.head is not None and self.architecture.head.tied

    def _update(self, parameter: str, update: lazy.LowRank) -> None:
        self.updates.setdefault(parameter, []).append(update)

    def _check(self, target: Target) -> None:
        if target.native.row.via is not None:
            raise self._mapped(target.adapted.down)
        if _is_alias(target.native):
            raise self._alias(target.adapted.down)
        self._check_alone(target.native, target.adapted.down)
        for named in target.adapted.tensors.values():
            if named.dtype.name not in _FLOATS:
                raise Refusal(f"{named.key!r} is {named.dtype}", expected=" or ".join(_FLOATS))
        found, said = target.rank, self.settings.rank(target.looked_up)
        if found != said:
            raise FormatError(
                f"the rank of {target.adapted.path} is not the one of the config",
                found=f"{found}, by the shape {target.adapted.down.shape} of {target.adapted.down.key}",
                expected=f"{said}, by r or rank_pattern",
            )
        has = MAGNITUDE in target.adapted.tensors
        if has != self.settings.dora:
            raise FormatError(
                f"{target.adapted.path} has {'a' if has else 'no'} magnitude, and use_dora is {str(self.settings.dora).lower()}",
                expected="magnitudes for DoRA, and for nothing else",
            )
        if (BIAS in target.adapted.tensors) != (self.settings.lora_bias and not target.adapted.embedding):
            raise FormatError(
                f"{target.adapted.path} has {'a' if BIAS in target.adapted.tensors else 'no'} bias of B, and lora_bias is "
                f"{str(self.settings.lora_bias).lower()}"
            )

    def _check_alone(self, native: layouts.Native, named: NamedTensor) -> None:
        """Raise an error for a change of an embedding alone that the model looks up under other names, each a module of its own (T5)."""
        if native.row.copy or EMBEDDING not in {piece.parameter for piece in native.pieces}:
            return
        others = [
            name
            for name, other in self.model.names.items()
            if _is_alias(other) and EMBEDDING in {piece.parameter for piece in other.pieces}
        ]
        if others:
            raise Refusal(
                f"{named.key!r} changes a module that the model does not use",
                file=self.file,
                found=f"the model looks tokens up in {' and '.join(others)}, which PEFT leaves as they are",
            )

    # --- finding modules -----------------------------------------------------------------------------------------------

    def _target(self, adapted: AdaptedModule) -> Target:
        """The tensor of the model that a pair belongs to, by its name; of several parameters of one module, by its shape."""
        candidates = self._names_of(adapted)
        if not candidates:
            raise self._unknown(_module_of(adapted), adapted.down)
        return self._fitting(adapted, candidates)

    def _names_of(self, adapted: AdaptedModule) -> list[str]:
        """The tensors of the model that a pair may belong to, by its name."""
        module, names = _module_of(adapted), self.model.names
        weight = f"{module}.weight"
        if weight in names:
            return [weight]
        return [name for name in names if name.rpartition(".")[0] == module and len(names[name].shape) == 3]

    def _fits(self, adapted: AdaptedModule, name: str) -> list[Target]:
        targets = targets_of(adapted, self.model.names[name], self.settings)
        return [target for target in targets if target.fits]

    def _fitting(self, adapted: AdaptedModule, candidates: Sequence[str]) -> Target:
        fits = [target for name in candidates for target in self._fits(adapted, name)]
        if len(fits) == 1:
            return fits[0]
        shapes = f"A {adapted.down.shape}, B {adapted.up.shape}"
        if len({target.native.name for target in fits}) == 1 and fits[0].experts > 1:
            return self._of_square(adapted, fits)
        if fits:
            raise FormatError(
                f"the shapes of {adapted.path} fit several parameters",
                found=f"{shapes}: {', '.join(t.native.name for t in fits)}",
            )
        wanted = "; ".join(f"{name} is {self.model.names[name].shape}" for name in candidates)
        raise FormatError(
            f"the shapes of {adapted.path} do not fit the base",
            found=shapes,
            expected=wanted,
            fix="give the base that it was trained on",
        )

    def _of_square(self, adapted: AdaptedModule, fits: Sequence[Target]) -> Target:
        """Which of two ways a pair on square experts is meant in: that of the adapter's other experts, or of the release that wrote it."""
        straight = out_dimension(fits[0].native) == 1  # kept as [experts, out, in]
        crossed = self.crossed if self.crossed is not None else self.settings.crosses_experts(straight)
        if crossed is None:
            raise Refusal(
                f"{adapted.path} is of square experts, and whether its A runs over their input or over their output is not known",
                file=self.file,
                found=f"shape {fits[0].native.shape} of {fits[0].native.name}",
                expected="other experts in the same adapter that are not square, or a peft_version in its config that had one way",
                fix="merge it with the releases of PEFT and transformers that it was trained with",
            )
        return next(target for target in fits if target.crossed == crossed)

    def _unknown(self, name: str, named: NamedTensor) -> FormatError:
        return FormatError(
            f"the base has no {name}, which the adapter changes",
            file=self.file,
            found=f"{named.key}; the base is a {self.model.class_name}",
            expected="the model that the adapter was trained on",
            fix=errors.did_you_mean(
                name, [one.removesuffix(".weight") for one in self.model.names], "give that model with -o base=FOLDER"
            ),
        )

    def _mapped(self, named: NamedTensor) -> Refusal:
        return Refusal(
            f"{named.key!r} changes a tensor that is kept with a map of values, which is not done", file=self.file
        )

    def _alias(self, named: NamedTensor) -> Refusal:
        return Refusal(
            f"{named.key!r} changes one of several names of an embedding, which then are not one", file=self.file
        )

    def _other_shape(self, named: NamedTensor, expected: tuple[int, ...], name: str) -> FormatError:
        return FormatError(
            f"{named.key!r} does not have the shape of the base",
            file=self.file,
            found=f"shape {named.shape}",
            expected=f"shape {expected} of {name}",
            fix="give the base that it was trained on",
        )

    # --- what must be there --------------------------------------------------------------------------------------------

    def check_whole(self) -> None:
        """Raise all problems found so far; then every module that the config has adapted or saved and the files have nothing of.

        A tensor that was refused is not one that is missing: what is missing is known where all that is there is understood.
        """
        self.problems.raise_any()
        done = {target.native.name for target in self.adapted} | set(self.saved)
        of_experts = any(_of_one_expert(target.native) for target in self.adapted)
        absent = []
        for name, native in self.model.names.items():
            module, _, kind = name.rpartition(".")
            if kind != "weight" or len(native.shape) != 2 or name in done or not self.settings.targets_module(module):
                continue
            # Experts are modules in transformers 4 alone, and a router is a linear module there.
            parameters = {piece.parameter for piece in native.pieces}
            expected = of_experts if _of_one_expert(native) else not any(".router." in one for one in parameters)
            if expected and not _is_alias(native):
                absent.append(module)
        if absent:
            self.problems.add(
                FormatError(
                    f"target_modules names {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
                    file=self.file,
                    found="the adapter has no tensors of it",
                    fix="copy the adapter again, or give the base that it was trained on",
                )
            )
        self._check_tied()
        self._check_layers()
        self._check_parts(done)
        for module in self.settings.saved_modules:
            if not any(saved_as(module, name) for name in self.saved):
                self.problems.add(
                    FormatError(
                        f"modules_to_save names {module!r}, and the adapter has no tensor of it", file=self.file
                    )
                )
        # PEFT puts the usual names of a mixture into the list, and a class may lack one of them: HunYuan's router is no gate.weight
        # (peft 0.21.2, utils/transformers_weight_conversion.py). A parameter that the base has and the adapter lacks: see `_check_parts`.
        named = self.settings.target_parameters
        if named and not any(self.settings.targets_parameter(name) for name in done):
            self.problems.add(
                FormatError(
                    f"target_parameters names {', '.join(map(repr, named))}, and the adapter has no tensors of "
                    + ("it" if len(named) == 1 else "them"),
                    file=self.file,
                )
            )
        self.problems.raise_any()

    @property
    def own_biases(self) -> set[str]:
        """The biases of the adapted modules, which `lora_only` trains."""
        found = {f"{target.native.name.removesuffix('.weight')}.bias" for target in self.adapted}
        return found & self.model.names.keys()

    def _check_parts(self, done: set[str]) -> None:
        """Find tensors that a key of the config means and that the adapter lacks, where it has others that the key means, too."""
        settings, own_biases = self.settings, self.own_biases
        some = settings.bias == "lora_only" and bool(own_biases & done)
        meant: dict[str, Callable[[str], bool]] = {
            "modules_to_save": settings.saves,
            "target_parameters": settings.targets_parameter,
            "bias=all": lambda name: settings.bias == "all" and name.endswith(".bias"),
            "bias=lora_only": lambda name: some and name in own_biases,
        }
        # transformers 4 and 5 have different names of one tensor (experts), and the adapter has one of them.
        held = {piece.parameter for name in done for piece in self.model.names[name].pieces}
        for key, means in meant.items():
            absent = [
                name
                for name, native in self.model.names.items()
                if means(name) and not _is_alias(native) and not held & {piece.parameter for piece in native.pieces}
            ]
            if absent:
                self.problems.add(
                    FormatError(
                        f"{key} means {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
                        file=self.file,
                        found="the adapter has no tensors of it",
                        fix="copy the adapter again, or give the base that it was trained on",
                    )
                )

    def _check_layers(self) -> None:
        """Find a `layers_pattern` that fits no module: with it PEFT adapts nothing, and nothing could be missed."""
        settings = self.settings
        modules = (name.rpartition(".")[0] for name in self.model.names)
        if settings.layers is not None and all(settings.layer_of(module) is None for module in modules):
            said = ", ".join(settings.layers_pattern)
            self.problems.add(
                FormatError(
                    "layers_to_transform names layers, and no module of the base is in one"
                    + (f" by layers_pattern {said!r:.80}" if said else ""),
                    file=self.file,
                    found=f"a {self.model.class_name}",
                    expected="the name of the list of layers, such as 'layers'",
                )
            )

    def _check_tied(self) -> None:
        """With `ensure_weight_tying` PEFT saves the one pair of embedding and head twice: A of the head is B of the embedding, turned round."""
        heads = [one.adapted for one in self.adapted if _is_tied_head(one.native)]
        tokens = [one.adapted for one in self.adapted if one.adapted.embedding]
        if not (heads and self._is_tied and self.as_one):
            return
        pairs = [(head, other) for head in heads for other in tokens]
        same = all(self._is_one_pair(head, other) for head, other in pairs)
        if not pairs or not same:
            self.problems.add(
                FormatError(
                    f"{heads[0].down.key} and its B are not those of the embedding",
                    file=self.file,
                    expected="one pair for both, as ensure_weight_tying says",
                )
            )

    def _is_one_pair(self, head: AdaptedModule, tokens: AdaptedModule) -> bool:
        return self._is_turned(head.down, tokens.up) and self._is_turned(head.up, tokens.down)

    def _is_turned(self, one: NamedTensor, other: NamedTensor) -> bool:
        return lazy.are_equal(one.shards, other.turned().shards, self.states)

    def finish(self) -> dict[str, lazy.LazyParameter]:
        """The tensors of the merged model; raises every problem found."""
        for parameter, updates in self.updates.items():
            base = self.tensors[parameter]
            dtype = dtypes.FP32 if self.exact else _dtype_of(base)
            if dtype.name not in _FLOATS:
                self.problems.add(
                    Refusal(
                        f"{parameter} of the base is {dtype}, into which nothing is merged",
                        file=self.file,
                        expected=" or ".join(_FLOATS),
                    )
                )
                continue
            self.tensors[parameter] = _merged(base, tuple(updates), dtype)
        self.problems.raise_any()
        return {name: self.tensors[name] for name in schema.parameters(self.architecture)}


# --- one pair ----------------------------------------------------------------------------------------------------------


@schema.dataclass(frozen=True)
class Target:
    """A pair of matrices and the tensor that it changes: `out` and `into` are the dimensions of that tensor which B and A run over.

    Of fused experts these are the dimensions of the tensor and not the output and the input of the model: a pair is `crossed` where A runs
    over the output. Releases of PEFT differ in it: see `Settings.crosses_experts`.
    `narrowed`: its product is rounded to the dtype of the tensor before it is added. `looked_up` is what patterns name it by.
    """

    adapted: AdaptedModule
    native: layouts.Native
    out: int
    into: int
    narrowed: bool
    looked_up: str

    @property
    def experts(self) -> int:
        """How many matrices the tensor holds, each with a product of its own."""
        return self.native.shape[0] if len(self.native.shape) == 3 else 1

    @property
    def crossed(self) -> bool:
        """Whether A runs over the output of the experts, and B over their input."""
        return self.experts > 1 and self.out != out_dimension(self.native)

    @property
    def rank(self) -> int:
        """The rank of each product."""
        return self.adapted.down.shape[0] // self.experts

    @property
    def fits(self) -> bool:
        """Whether the shapes of the pair are those of the tensor."""
        down, up, magnitude = (
            self.adapted.down.shape,
            self.adapted.up.shape,
            self.adapted.tensors.get(MAGNITUDE),
        )
        out, into = self.native.shape[self.out], self.native.shape[self.into]
        return (
            len(down) == len(up) == 2
            and down[0] == up[1]
            and down[0] > 0
            and down[0] % self.experts == 0
            and (down[1], up[0]) == (into, out)
            and (magnitude is None or (magnitude.shape == (out,) and self.experts == 1))
        )

    def products(self) -> Iterator[tuple[str, lazy.LazyParameter, lazy.LazyParameter, layouts.Tile]]:
        """For each part of each matrix the parameter it is of, A, B, and which elements of their product it takes."""
        for number in range(self.experts):
            down, up = self._pair(number)
            for piece in self.native.pieces:
                tiles = piece.tile.cut_native(0, number, number + 1) if self.experts > 1 else [piece.tile]
                for tile in tiles:
                    yield piece.parameter, down, up, lazy.update_tile(tile, self.out, self.into)

    def _pair(self, number: int) -> tuple[lazy.LazyParameter, lazy.LazyParameter]:
        """A and B of one expert. The rank axis of A has the experts outside, that of B has them inside (`ParamWrapper`)."""
        down, up = self.adapted.down, self.adapted.up
        if self.experts == 1:
            return down.lazy(), up.lazy()
        first = down.part(0, number * self.rank, self.rank)
        second = up.part(1, number, self.rank, self.experts)
        return first.lazy(), second.lazy()


def targets_of(adapted: AdaptedModule, native: layouts.Native, settings: Settings) -> Iterator[Target]:
    """A pair on a tensor, in each way that the tensor's dimensions may be meant: one, where its parameters say which is the output."""
    dims = len(native.shape)
    if dims not in (2, 3):
        return
    parameter = settings.targets_parameter(native.name)
    looked_up = native.name if parameter else native.name.removesuffix(".weight")
    if adapted.embedding:
        # The module looks rows up: its input are the rows, and its output the columns.
        yield Target(adapted, native, 1, 0, narrowed=True, looked_up=looked_up)
        return
    matrix = {dims - 2, dims - 1}
    # Of one row, or one column, and of fused experts the shapes say which.
    for out in sorted(matrix) if dims == 3 or 1 in native.shape[-2:] else [out_dimension(native)]:
        (into,) = matrix - {out}
        yield Target(adapted, native, out, into, narrowed=parameter, looked_up=looked_up)


def _module_of(adapted: AdaptedModule) -> str:
    """The path of the module that a pair is of; wrappers of several parameters of one module lie in one another."""
    module = adapted.path
    while module.endswith(_BASE_LAYER):
        module = module.removesuffix(_BASE_LAYER)
    return module


def out_dimension(native: layouts.Native) -> int:
    """The dimension of a weight that its output runs over: a parameter has the axes of its output first, but for an expert's number.

    transformers keeps linear weights as [out, in], and those of Conv1D (GPT-2) as [in, out].
    """
    matrix = (len(native.shape) - 2, len(native.shape) - 1)
    links = [link for piece in native.pieces for link in piece.tile.links if link.dim in matrix and link.size > 1]
    return min(links, key=lambda link: link.axis).dim if links else matrix[0]


def _of_one_expert(native: layouts.Native) -> bool:
    return "{x}" in native.row.native


def _is_tied_head(native: layouts.Native) -> bool:
    return native.row.copy and native.row.when == "head.tied"


def _is_alias(native: layouts.Native) -> bool:
    """Whether a tensor is one more name of another one, and not the tied head: T5 has its embedding under three names."""
    return native.row.copy and not _is_tied_head(native)


def _dtype_of(base: lazy.LazyParameter) -> dtypes.DType:
    """The dtype that a tensor of the base has in transformers: float32 where its values were computed."""
    return dtypes.FP32 if base.computed else base.dtype


def _merged(base: lazy.LazyParameter, updates: tuple[lazy.LowRank, ...], dtype: dtypes.DType) -> lazy.LazyParameter:
    return lazy.LazyParameter(base.parameter, dtype, (), merged=lazy.Merged(base, updates, dtype))


def _column(shard: lazy.Shard) -> lazy.Shard:
    """A part of a vector as one of a matrix of one column."""
    stored = shard.stored
    return lazy.Shard((*shard.origin, 0), replace(stored, shape=(*stored.shape, 1), strides=(*stored.strides, 1)))
