"""BNNP's guide: layer by layer the exact posterior of a linear model of amortised pseudo-observations."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guides.networks.conjugate_layer import SOLVERS, layer_posterior, posterior_of_statistics, statistics, with_bias
from guides.networks.context_transformer import ContextTransformer
from guides.networks.weight_guide import WeightGuide
from guides.networks.whitened_gaussian import WhitenedGaussian
from pp_models.arguments import LAYERS, POINTS, WIDTH, checked, each, one_of
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import GaussianLikelihood
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.networks.linear import linear
from pp_models.observation_model import ACTIVATIONS, seen_outputs
from pp_models.parameter_module import mlp
from pp_models.single_precision import single
from pp_models.task_plates import task_plates

CHOICES = ("auto", "real", "pseudo")
INFERENCE = ("mlp", "transformer")
CHUNK_GRADIENTS = ("exact", "single")
#: subtracted from the raw log noise, so that pseudo-observations start with sd e^-2 (docs/papers/bnnp.md, eq. 4)
LOG_NOISE_SHIFT = 2.0
LOG_NOISE_RANGE = (-6.0, 4.0)


class BNNWeightGuide(WeightGuide):
    """Amortised conditional posteriors of the layers of a Bayesian network (docs/papers/bnnp.md, eq. 4 to 7).

    One inference network a layer maps each context point (x_n, y_n) to a pseudo-target v and a pseudo-noise σ for each
    unit. Given a draw of the layers below, hence the features Φ that enter layer l, a unit's incoming weights have the
    conjugate posterior

        q(w_d | W_<l, D) ∝ p(w_d | W_<l) Π_n N(v_nd; φ_nᵀ w_d, σ_nd²),

    a Gaussian with a closed-form KL to the prior (:class:`WhitenedGaussian`). Layers are drawn
    in turn, so that the joint posterior is not Gaussian. With an empty context it is the prior, exactly.

    The guide shares the model's prior and, with real noise, its noise scale; gradients reach them through the guide.
    So they do the layer norms of a BayesianAttentionNetwork, through which the context points are propagated: they
    attend to one another alone.

    Args:
        model: the network; its prior must be Gaussian.
        final_targets: pseudo-targets of the last layer: ``"real"`` takes y itself (a Gaussian likelihood),
            ``"pseudo"`` amortises them (any likelihood); ``"auto"`` is real where it can be.
        final_noise: noise of the last layer: ``"real"`` takes the likelihood's (with real targets the last conditional
            is then exact), ``"pseudo"`` amortises it; ``"auto"`` is pseudo, as in the released regressions.
        inference: what maps context points to pseudo-observations: ``"mlp"`` looks at each point by itself,
            ``"transformer"`` is self-attention over the whole context, so that a point's pseudo-observations may depend
            on the others (no order, no position).
        hidden: hidden widths of the MLPs; the model's own by default.
        use_activation: give the networks of later layers the layer's input as well.
        solver: ``"primal"`` factors matrices of the layer's width, ``"dual"`` of the number of points; ``"auto"`` takes
            the smaller.
        chunk_size: accumulate the natural statistics over this many points at a time, so that memory does not grow with
            the context (primal form); None for all at once.
        chunk_gradient: ``"exact"`` recomputes each chunk in the backward pass; ``"single"`` takes the gradient of one
            random chunk a layer, scaled by their number: exact values, an unbiased gradient, and cheaper. (See
            docs/papers/bnnp.md, eq. 19 and 20; released code updates chunk after chunk, where a later one without
            gradient cuts it.)
        width: width of the transformers, and of the encoder of the deterministic path, where the model has one.
        num_blocks: attention blocks of a transformer.
        num_heads: attention heads of a transformer.

    Raises:
        ValueError: an unknown option, real targets or noise without a Gaussian likelihood, another kind of prior,
            chunks with the dual form or where points see one another, or a width that the heads cannot divide.
    """

    name = "bnn-weight"
    description = "BNNP: conjugate posteriors layer by layer, from amortised pseudo-observations"

    independent_sites = False

    @checked(
        final_targets=one_of(*CHOICES),
        final_noise=one_of(*CHOICES),
        inference=one_of(*INFERENCE),
        hidden=each(WIDTH, must="hold positive widths"),
        solver=one_of(*SOLVERS),
        chunk_size=POINTS,
        num_blocks=LAYERS,
        num_heads=LAYERS,
    )
    def __init__(
        self,
        model: BayesianNetwork,
        width: int = 128,
        *,
        final_targets: str = "auto",
        final_noise: str = "auto",
        inference: str = "mlp",
        hidden: list[int] | None = None,
        use_activation: bool = False,
        solver: str = "auto",
        chunk_size: int | None = None,
        chunk_gradient: str = "exact",
        num_blocks: int = 2,
        num_heads: int = 4,
    ) -> None:
        super().__init__(model, width)
        if hidden is not None and inference == "transformer":
            raise ValueError(f"hidden: got {hidden}, the widths of MLPs; a transformer takes width and num_blocks")
        if chunk_size is not None and solver == "dual":
            raise ValueError("chunk_size: the dual form has no statistics to accumulate; use solver='primal' or 'auto'")
        if chunk_size is not None and inference == "transformer":
            raise ValueError(
                f"chunk_size: got {chunk_size}, but the points of a chunk would attend only to one another; a "
                "transformer reads the whole context (inference='mlp', or chunk_size=None)"
            )
        if chunk_size is not None and not model.independent_points:
            raise ValueError(
                f"chunk_size: got {chunk_size}, but the points of a chunk would attend only to one another in a "
                f"{type(model).__name__}; it must be None"
            )
        if chunk_gradient not in CHUNK_GRADIENTS:
            raise ValueError(f"chunk_gradient: got {chunk_gradient!r}; it must be one of {', '.join(CHUNK_GRADIENTS)}")
        gaussian = isinstance(model.likelihood, GaussianLikelihood)
        for name, value in (("final_targets", final_targets), ("final_noise", final_noise)):
            if value == "real" and not gaussian:
                raise ValueError(
                    f"{name}: got 'real', but the likelihood is {type(model.likelihood).__name__}; only a "
                    "GaussianLikelihood has observations and a noise of the last layer's outputs"
                )
        model.prior.gaussian(0, [])  # refuses a prior that is not
        self.real_targets = final_targets == "real" or (final_targets == "auto" and gaussian)
        self.real_noise = final_noise == "real"
        self.use_activation, self.solver = use_activation, solver
        self.chunk_size, self.chunk_gradient = chunk_size, chunk_gradient
        self.activation = ACTIVATIONS[model.activation]
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        sizes = model.hidden_sizes if hidden is None else hidden
        self.inference = inference
        self.networks = nn.ModuleList()
        for i, (k_out, columns) in enumerate(self.shapes):
            outputs = k_out * self.amortised(i)
            read = model.dim_x + model.dim_seen + (columns - 1 if use_activation and i else 0)
            network: nn.Module = nn.Identity()
            if outputs and inference == "transformer":
                network = ContextTransformer(read, outputs, width, num_blocks, num_heads)
            elif outputs:
                network = mlp([read, *sizes, outputs])
            if outputs:  # small outputs at the start: every pseudo-noise is about e^-2, which float32 can solve
                with torch.no_grad():
                    network[-1].weight.mul_(0.1)  # type: ignore[index, operator, union-attr]
            self.networks.append(network)

    @property
    def model(self) -> BayesianNetwork:
        """The network whose prior, likelihood and layer norms this guide shares."""
        return self._shared[0]

    def amortised(self, index: int) -> int:
        """How many numbers a unit's point needs from the layer's network: target and noise, less what is real."""
        last = index == len(self.shapes) - 1
        return 2 - (last and self.real_targets) - (last and self.real_noise)

    def moved_to(self, model: BayesianNetwork) -> BNNWeightGuide:
        """A copy of this guide for another model of the same shapes: its prior, its noise, the same inference networks.

        So a guide that was meta-trained on one prior is tried (and tuned further) on another one.

        Raises:
            ValueError: the other model's weights have other shapes.
        """
        if model.weight_shapes != self.shapes:
            raise ValueError(
                f"model: its weights have shapes {model.weight_shapes}; this guide was built for {self.shapes}"
            )
        model.prior.gaussian(0, [])
        mine, self._shared = self._shared, (model,)
        try:
            return copy.deepcopy(self, {id(model): model})  # the model is shared, not copied
        finally:
            self._shared = mine

    def layer_distributions(self, data: Dataset) -> list[Any]:
        raise ValueError("data: the layers of this guide depend on draws of those below; call the guide itself")

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every weight matrix in turn, given the data.

        Raises:
            DataError: the data has no y, or widths or a dtype that the model cannot take.
        """
        self.check(data)
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            context = self.sample_context(data)
            values |= context
            drawn: list[Tensor] = []

            def draw(index: int, q: WhitenedGaussian) -> Tensor:
                values[self.sites[index]] = pyro.sample(self.sites[index], q)
                drawn.append(values[self.sites[index]])
                return drawn[-1]

            def layer(index: int, features: Tensor) -> Tensor:
                return linear(features, draw(index, self.conditional(index, data, features, drawn)))

            if self._chunks(data) > 1:
                for index in range(len(self.sites)):
                    draw(index, self._in_chunks(index, data, drawn, context))
            else:
                self.model.propagate(self.layer_input(data.x, [], context), layer, data.mask)
        return values

    def check(self, data: Dataset) -> None:
        """Refuses data that gives no posterior.

        Raises:
            DataError: it has no y, or widths or a dtype that the model cannot take.
        """
        if data.y is None:
            raise DataError("data: y is None; a posterior needs observed points")
        self.model.check(data)

    def layer_input(self, x: Tensor, drawn: list[Tensor], context: Mapping[str, Tensor] | None = None) -> Tensor:
        """What enters the layer after those drawn, without the bias column: ``[*B, N, k_in]``; no attention."""
        context = context or {}
        features = self.model.network_input(x, context.get("representation"), context.get("memory"))
        for weight in drawn:
            features = self.activation(linear(features, weight))
        return features

    def pseudo_observations(self, index: int, data: Dataset, features: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and precisions ``[*B, N, k_out]`` of a layer; precision 0 where a point does not exist,
        and in a last layer of real targets where an output is missing."""
        assert data.y is not None
        y = seen_outputs(data, self.dim_y)
        last = index == len(self.shapes) - 1
        parts: Iterator[Tensor] = iter(())
        if self.amortised(index):
            read = torch.cat([data.x, self.model.seen(data)], -1)
            if self.use_activation and index:
                read = read.expand(*features.shape[:-1], read.shape[-1])
                read = torch.cat([read, features], -1)
            network = self.networks[index]
            found = network(read, data.mask) if self.inference == "transformer" else network(read)
            parts = iter(found.split(self.shapes[index][0], -1))
        target = y if last and self.real_targets else next(parts)
        if last and self.real_noise:
            likelihood = self.model.likelihood
            assert isinstance(likelihood, GaussianLikelihood)
            precision = single(torch.ones_like(target)) / likelihood.scale() ** 2
        else:
            # up to e^12, which 16 bits do not hold
            precision = (-2 * (single(next(parts)) - LOG_NOISE_SHIFT).clamp(*LOG_NOISE_RANGE)).exp()
        if last and self.real_targets and data.observed is not None:
            precision = precision * data.observed
        elif data.mask is not None:
            precision = precision * data.mask.unsqueeze(-1)
        return target, precision

    def conditional(self, index: int, data: Dataset, features: Tensor, drawn: list[Tensor]) -> WhitenedGaussian:
        """q(W_l | W_<l, D), batch ``*B`` (with particles to their left after the first layer)."""
        blocks = self.model.prior.gaussian(index, drawn)
        target, precision = self.pseudo_observations(index, data, features)
        shape = self.shapes[index]
        return layer_posterior(features, target, precision, blocks, shape, self.prior_key(index), self.solver)

    def prior_key(self, index: int) -> tuple[int, int]:
        """Names the prior of a layer: posteriors of the same key share its factorisation."""
        return id(self.model.prior), index

    # -- many points -----------------------------------------------------------------------------------------------

    def _chunks(self, data: Dataset) -> int:
        return 1 if self.chunk_size is None else max(1, -(-data.num_points // self.chunk_size))

    def _in_chunks(
        self, index: int, data: Dataset, drawn: list[Tensor], context: Mapping[str, Tensor]
    ) -> WhitenedGaussian:
        """:meth:`conditional`, by statistics summed chunk by chunk; nothing of a chunk is kept but its sums."""
        blocks = self.model.prior.gaussian(index, drawn)

        def of_chunk(chunk: Dataset, *below: Tensor) -> tuple[Tensor, Tensor]:
            features = self.layer_input(chunk.x, list(below), context)
            target, precision = self.pseudo_observations(index, chunk, features)
            return statistics(with_bias(features), target, precision, self.model.prior.gaussian(index, list(below)))

        count = self._chunks(data)
        single = self.chunk_gradient == "single" and torch.is_grad_enabled()
        chosen = int(torch.randint(count, ())) if single else -1  # of the CPU's generator: no device is read
        sums: list[Tensor] | None = None
        for number in range(count):
            chunk = data.points(slice(number * self.chunk_size, (number + 1) * self.chunk_size))  # type: ignore[operator]
            if not torch.is_grad_enabled():
                found = of_chunk(chunk, *drawn)
            elif not single:
                found = checkpoint(of_chunk, chunk, *drawn, use_reentrant=False, preserve_rng_state=False)
            elif number == chosen:
                gram, moment = of_chunk(chunk, *drawn)
                found = scaled_gradient(gram, count), scaled_gradient(moment, count)
            else:
                with torch.no_grad():
                    found = of_chunk(chunk, *drawn)
            sums = list(found) if sums is None else [total + s for total, s in zip(sums, found, strict=True)]
        assert sums is not None
        return posterior_of_statistics(sums[0], sums[1], blocks, self.shapes[index], self.prior_key(index))


def scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself; its gradient times a factor."""
    return value.detach() + factor * (value - value.detach())
