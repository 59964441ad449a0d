"""A training step as one graph of tensor operations: traced once for a kind of batch, Pyro gone, then compiled.

``make_fx`` runs model, guide and objective on fake tensors, whose number of points is a symbol, and records the loss,
its statistics and every gradient. Inductor compiles the record, with eager's random numbers. What the record depends on
beside tensors (shapes, which masks there are, dtypes, device, training mode, options) is compared at every step; where
it differs another graph is made. Optimizer, clipping and the skipping of bad steps see gradients and no difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from inference.objectives import TaskObjective
from inference.training_step import Sealed, TrainingStep
from pp_models.contract import as_model
from pp_models.data import Dataset, TaskBatch
from pp_models.parameter_module import ParameterModule

logger = logging.getLogger("guidebook")

#: graphs of one fit; batches of further kinds run eagerly
MOST_GRAPHS = 16
#: precisions whose losses are not scaled
PRECISIONS = ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed")

Batch = Dataset | TaskBatch
Backend = Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]


class CannotCompile(Exception):
    """Why a step has to run eagerly."""


@dataclass(frozen=True)
class Graph:
    """One graph and where it holds.

    Args:
        run: from parameters, buffers and the batch's tensors to loss, statistics and gradients.
        used: which trained parameters have a gradient.
        guard: an expression of the inputs' sizes, empty where the graph is for all of its kind.
        shapes: the symbols' environment, which evaluates the guard.
        nodes: operations recorded.
    """

    run: Callable[..., Any]
    used: tuple[bool, ...]
    guard: str
    shapes: Any
    nodes: int

    def holds(self, inputs: Sequence[Tensor]) -> bool:
        """Whether the graph is right for inputs of its kind."""
        return not self.guard or bool(self.shapes.evaluate_guards_expression(self.guard, inputs))


class CompiledStep:
    """Loss, statistics and gradients of a batch by graphs, and eagerly where there can be none.

    Args:
        module: model, guide and objective.
        eager: the same step run eagerly: sets gradients, returns loss and statistics.
        backend: ``"inductor"``; or ``"graph"``, which runs the record operation by operation.
        precision: a context in which the step is traced, such as Fabric's autocast.
        finish: what becomes of loss and statistics, such as Fabric's conversion of outputs.
        dynamic: any number of points in one graph; False makes one for each.

    Raises:
        CannotCompile: no batch could be compiled; the message says why.
    """

    def __init__(
        self,
        module: TrainingStep,
        eager: Callable[[Batch], tuple[Tensor, Tensor]],
        backend: str = "inductor",
        *,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        finish: Callable[[Any], Any] = tuple,
        dynamic: bool = True,
    ) -> None:
        check_traceable(module)
        self.module, self.eager, self.precision, self.finish = module, eager, precision, finish
        self.backend: Backend = inductor if backend == "inductor" else as_recorded
        self.dynamic = dynamic
        self.graphs: dict[Hashable, list[Graph]] = {}
        self.failed: dict[Hashable, str] = {}
        self._said: set[str] = set()
        named = dict(module.named_parameters())
        self._names = [*named, *(name for name, _ in module.named_buffers())]
        self._parameters = list(named.values())
        self._watched = watched(module)

    @property
    def count(self) -> int:
        """Graphs made so far."""
        return sum(len(found) for found in self.graphs.values())

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sets gradients; returns the loss and ``STATISTICS`` ``[4]``.

        Raises:
            DataError: data that the model cannot take.
        """
        leaves, layout = flatten(batch)
        kind = self._kind(leaves, layout)
        if kind in self.failed:
            return self.eager(batch)
        inputs = [*self._tensors(), *leaves]
        graph = next((graph for graph in self.graphs.get(kind, ()) if graph.holds(inputs)), None)
        # what a graph cannot do: to look at values, where eager does too
        as_model(self.module.model).check(batch.full if isinstance(batch, TaskBatch) else batch)
        if graph is None:
            try:
                graph = self._make(leaves, layout)
            except Exception as error:  # of the model's code under tracing, of a compiler: eager will do, or say more
                return self._give_up(kind, batch, _reason(error))
            self.graphs.setdefault(self._kind(leaves, layout), []).append(graph)
        trained = [p for p in self._parameters if p.requires_grad]
        with torch.no_grad():
            loss, statistics, *found = graph.run(*inputs)
        gradients = iter(found)
        for parameter, used in zip(trained, graph.used, strict=True):
            parameter.grad = next(gradients) if used else None
        return self.finish((loss, statistics))

    # -- what a graph depends on ----------------------------------------------------------------------------------

    def _tensors(self) -> list[Tensor]:
        return [*self._parameters, *self.module.buffers()]

    def _kind(self, leaves: list[Tensor], layout: Layout) -> Hashable:
        """What batches of one graph share: of a number of points only whether it is 0, 1 or more."""
        found: list[Hashable] = [layout, self._state()]
        for leaf, points in zip(leaves, layout.points, strict=True):
            sizes = list(leaf.shape)
            if self.dynamic:
                sizes[points] = min(sizes[points], 2)
            found.append((leaf.dtype, leaf.device, *sizes))
        return tuple(found)

    def _state(self) -> Hashable:
        """Training mode, options and what else a trace reads that is no tensor."""
        frozen = tuple(p.requires_grad for p in self._parameters)
        return frozen, tuple(found.get(name) for found, names in self._watched for name in names)

    # -- making one -----------------------------------------------------------------------------------------------

    def _make(self, leaves: list[Tensor], layout: Layout) -> Graph:
        if self.count >= MOST_GRAPHS:
            raise CannotCompile(f"there are {MOST_GRAPHS} graphs already, and this batch needs another")
        try:
            return self._trace(leaves, layout, self.dynamic)
        except Exception as error:
            if not self.dynamic:
                raise
            logger.info("compile: one graph for each number of points (%s)", _reason(error))
            self.dynamic = False
            self.graphs.clear()
        return self._trace(leaves, layout, False)

    def _trace(self, leaves: list[Tensor], layout: Layout, dynamic: bool) -> Graph:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        shapes = ShapeEnv(duck_shape=False)
        mode = FakeTensorMode(shape_env=shapes)
        fixed: list[Any] = [
            mode.from_tensor(tensor.detach(), static_shapes=True).requires_grad_(tensor.requires_grad)
            for tensor in self._tensors()
        ]
        fake = [
            mode.from_tensor(leaf, **(_any_points(leaf, points, i) if dynamic else {"static_shapes": True}))
            for i, (leaf, points) in enumerate(zip(leaves, layout.points, strict=True))
        ]
        used: tuple[bool, ...] = ()

        def step(*inputs: Tensor) -> list[Tensor]:
            nonlocal used
            state = dict(zip(self._names, inputs, strict=False))
            batch = layout.rebuild(inputs[len(self._names) :])
            trained = [tensor for tensor in state.values() if tensor.requires_grad]
            with self.precision():
                loss, statistics = torch.func.functional_call(self.module, state, (Sealed(batch),))
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            used = tuple(gradient is not None for gradient in found)
            owned = {tensor.untyped_storage()._cdata for tensor in inputs}
            gradients = [
                own(gradient, parameter, owned)
                for gradient, parameter in zip(found, trained, strict=True)
                if gradient is not None
            ]
            return [loss.detach(), statistics.detach(), *gradients]

        with torch.random.fork_rng(devices=_cuda_devices(leaves)), mode, tracing(), pyro.validation_enabled(False):
            parts = {torch.ops.aten.baddbmm.default: _sum_and_product} if dynamic else None
            record = make_fx(step, parts, tracing_mode="real", _allow_non_fake_inputs=True)(*fixed, *fake)
        check_constants(record)
        simplify(record)
        placeholders = [*fixed, *fake]
        guard = _guard(shapes, placeholders, len(fixed)) if dynamic else ""
        nodes = len(record.graph.nodes)
        with torch.no_grad(), torch._guards.tracing(torch._guards.TracingContext(mode)):
            run = self.backend(record, [*(tensor.detach() for tensor in fixed), *fake])
        return Graph(run, used, guard, shapes, nodes)

    def _give_up(self, kind: Hashable, batch: Batch, why: str) -> tuple[Tensor, Tensor]:
        if len(self.failed) >= 16 * MOST_GRAPHS:  # options that are others at every step
            self.failed.clear()
        self.failed[kind] = why
        if why not in self._said:
            self._said.add(why)
            logger.warning("compile: runs eagerly, for %s", why)
        return self.eager(batch)


@dataclass(frozen=True)
class Layout:
    """How a batch's tensors stand in a list.

    Args:
        present: for each part x, y, mask and observed: whether it is there.
        points: of each tensor the dimension of the points.
    """

    present: tuple[tuple[bool, bool, bool, bool], ...]
    points: tuple[int, ...]

    def rebuild(self, leaves: Sequence[Tensor]) -> Batch:
        """The batch of a list of tensors."""
        rest = iter(leaves)
        parts = [Dataset.unchecked(*(next(rest) if there else None for there in part)) for part in self.present]  # type: ignore[arg-type]
        return parts[0] if len(parts) == 1 else TaskBatch.unchecked(parts[0], parts[1], {})


def flatten(batch: Batch) -> tuple[list[Tensor], Layout]:
    """The tensors of a batch that a step reads (``truth`` is none of them), contiguous, and how to put them back."""
    parts = [batch.context, batch.target] if isinstance(batch, TaskBatch) else [batch]
    leaves, present, points = [], [], []
    for part in parts:
        present.append((True, part.y is not None, part.mask is not None, part.observed is not None))
        for tensor in (part.x, part.y, part.mask, part.observed):
            if tensor is not None:
                whole = tensor.contiguous()
                leaves.append(whole.clone() if whole.storage_offset() else whole)  # where it begins would be a guard
                points.append(-2 if tensor.dtype.is_floating_point or tensor is part.observed else -1)
    return leaves, Layout(tuple(present), tuple(points))


def check_traceable(module: TrainingStep) -> None:
    """Refuses what a graph cannot stand for.

    Raises:
        CannotCompile: the message says why.
    """
    objective = module.objective
    if not isinstance(objective, TaskObjective):
        raise CannotCompile(f"{type(objective).__name__} is not an objective of the library's")
    for name, part in (("model", module.model), ("guide", module.guide)):
        if not isinstance(part, ParameterModule):
            raise CannotCompile(
                f"the {name}, {type(part).__name__}, is not of the library's kind: its plates are tried"
            )
    if objective.inner_steps > 1:
        raise CannotCompile(f"inner_steps = {objective.inner_steps}: an E-step is kept from one update to the next")
    for name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise CannotCompile(f"{name or 'a module'} has a hook, which a graph would run once alone")
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise CannotCompile(f"{name} has a hook, which a graph would run once alone")


#: values that are read off a module or an objective as they are
PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype)


def watched(module: TrainingStep) -> list[tuple[dict[str, Any], list[str]]]:
    """Attributes that a trace may read and that are no tensors: of every module, and the objective's options."""
    holders: list[Any] = [module.objective, *module.modules()]
    found = []
    for holder in holders:
        members = vars(holder)
        names = [
            name
            for name, value in members.items()
            if not name.startswith("_") and _comparable(value) and name not in ("call_super_init", "dump_patches")
        ]
        if names:
            found.append((members, names))
    return found


def _comparable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_comparable, value))
    frozen = is_dataclass(value) and not isinstance(value, type) and type(value).__hash__ is not None
    return isinstance(value, PLAIN) or (frozen and all(map(_comparable, vars(value).values())))


def own(gradient: Tensor, parameter: Tensor, owned: set[int]) -> Tensor:
    """A gradient in memory of its own, laid out as its parameter: it will be scaled and zeroed in place."""
    storage = gradient.untyped_storage()._cdata
    if storage in owned or gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
        gradient = torch.empty_like(parameter).copy_(gradient)
    owned.add(gradient.untyped_storage()._cdata)
    return gradient


@contextmanager
def tracing() -> Iterator[None]:
    """What asks ``torch.compiler.is_compiling()`` is told so: checks that look at values are made elsewhere.

    torch's log of what has no shape in symbols is held back, for it is tried again without them.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True  # type: ignore[attr-defined]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        torch.compiler._is_compiling_flag = before  # type: ignore[attr-defined]


def simplify(record: fx.GraphModule) -> None:
    """Takes out what only autograd needed, and what nothing reads."""
    graph = record.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    record.recompile()


def check_constants(record: fx.GraphModule) -> None:
    """Refuses tensors from outside, which the record would keep as they are now; numbers of the code are copied.

    Raises:
        CannotCompile: there is one.
    """
    for node in record.graph.nodes:
        made_here = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)
        if node.op == "get_attr" and any(user.target not in made_here for user in node.users):
            shape = list(getattr(record, str(node.target)).shape)
            raise CannotCompile(f"it reads a tensor {shape} that is neither parameter, buffer nor data")


def as_recorded(record: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """The record run operation by operation."""
    return record


def inductor(record: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """The record compiled: eager's random numbers, and no patterns, which expect graphs of another maker."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    flat = fx.Graph()
    places: dict[fx.Node, Any] = {}
    flat.graph_copy(record.graph, places)
    (end,) = (node for node in record.graph.nodes if node.op == "output")
    flat.output(tuple(places[node] if isinstance(node, fx.Node) else node for node in end.args[0]))
    with config.patch({"fallback_random": True, "pattern_matcher": False}):
        return compile_fx(fx.GraphModule(record, flat), inputs)  # type: ignore[return-value]


def _guard(shapes: Any, placeholders: list[Any], first: int) -> str:
    """An expression of the inputs' sizes: what the trace branched on, and what it took for a number."""
    found = [shapes.produce_guards_expression(placeholders) or "True"]  # which leaves sizes out that became numbers
    for i, tensor in enumerate(placeholders[first:], start=first):
        for dim, size in enumerate(tensor.shape):
            number = size if isinstance(size, int) else size.node.maybe_as_int()
            if number is not None:
                found.append(f"L['t{i}'].size()[{dim}] == {number}")
    return " and ".join(found)


def _sum_and_product(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``baddbmm`` in two, for torch knows no shape of the one in symbols; inductor joins them again."""
    product = torch.bmm(a, b)
    return (added if beta == 1 else beta * added) + (product if alpha == 1 else alpha * product)


def _any_points(leaf: Tensor, points: int, index: int) -> dict[str, Any]:
    """How a tensor becomes a fake one whose number of points is a symbol of its own; 0 and 1 are what they are."""
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.STATIC] * leaf.dim()
    if leaf.shape[points] > 1:
        sizes[points] = DimDynamic.DYNAMIC
    return {"symbolic_context": StatelessSymbolicContext(dynamic_sizes=sizes), "source": LocalSource(f"data_{index}")}


def _cuda_devices(leaves: list[Tensor]) -> list[torch.device]:
    return list({leaf.device for leaf in leaves if leaf.device.type == "cuda"})


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160] if isinstance(error, CannotCompile) else f"{type(error).__name__}: {lines[0][:140]}"
