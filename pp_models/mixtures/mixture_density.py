"""A mixture of shared experts whose weights are latent in every task: the model family of NMDP."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pp_models.arguments import FEATURES, FLAG, LAYERS, POSITIVE, SHARE, WIDTH, checked, number, one_of, tensor
from pp_models.context_path import FEATURES as BASES
from pp_models.context_path import make_path
from pp_models.data import Dataset
from pp_models.likelihoods import GaussianHeadLikelihood, Likelihood, categorical, make_likelihood, of_observed
from pp_models.mixtures.conjugate_experts import ConjugateExperts
from pp_models.mixtures.conjugate_sweeps import dirichlet_sweeps, stick_breaking_sweeps
from pp_models.mixtures.simplex_distributions import (
    ExpertMixture,
    LogSpaceDirichlet,
    StickBreaking,
    log_density_of_events,
    log_weights,
)
from pp_models.observation_model import ObservationModel, observe
from pp_models.task_plates import task_plates, without_repeats

#: mean weights of experts, at least one of them
USAGE = tensor(least=1, entries=True)
EXPERTS = ("context", "conjugate", "strict")


class MixtureDensityNetwork(ObservationModel):
    """z ~ Dir(α₀) for each task, y_i | x_i, z ~ Σ_l z_l p_l(y_i | x_i) for each point.

    This is NMDP's model (docs/papers/nmdp.md, eq. 1 to 3; the paper's eq. 3).

    The experts p_l are shared by all tasks and have parameters of their own; a task has only its weights z. Which
    expert speaks is drawn **anew at every point**: a task that follows one expert for all x has z near a corner of the
    simplex, and z in the middle is a mixture of colours, point by point, not a doubt about which function it is.

    ``experts="strict"`` is the equation as printed, p_l(y | x): a finite bank of fixed functions, which cannot follow
    the draws of a Gaussian process (its log-likelihood on GP tasks stays below zero). ``experts="context"`` lets every
    expert also read what attention from x over the context finds, p_l(y | x, r(x, D_c)), which competing takes; the
    guide hands the context over as the site ``memory``. ``experts="conjugate"``: every expert is a closed-form Bayesian
    regression of the context on features of its own, corrected by a network
    (:class:`pp_models.mixtures.conjugate_experts.ConjugateExperts`). Say in a table which one it is.

    Sites: ``mixture_weights`` ``[*B, L]``; with context or conjugate experts ``memory``
    ``[*B, N_context, Dx + E + 1]``, with a flat prior and a point mass in the guides; ``y``.

    Args:
        num_experts: L. Take at least twice the number of modes: a bank of just the right size may merge two.
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        experts: ``"context"``, ``"conjugate"`` or ``"strict"``.
        likelihood: head of an expert: ``"gaussian-head"`` (diagonal; the only one of conjugate experts),
            ``"student-t-head"``, ``"bernoulli"``, ``"categorical"``, or a Likelihood.
        min_scale: floor of an expert's scale. It caps a log-likelihood at -log(min_scale) - 0.919 nats per output, so
            it belongs beside every number.
        width: hidden width of an expert, and of the embedding of inputs.
        depth: linear layers of an expert.
        representation_dim: R, width of what an expert reads of the context.
        num_heads: attention heads.
        concentration: α₀ of the prior that plain ELBOs use; ``iw-em``, ``npvi`` and ``conditional-prior`` put the
            guide's own conditional in its place.
        spread: standard deviation of the experts' initial mean offsets, about that of y; equal experts would never
            part.
        path: what context experts read the context by: ``"attention"``, ``"regression"``, ``"learned-regression"`` or
            ``"kernels"`` (:mod:`pp_models.context_path`).
        features: of each conjugate expert, ``"fourier"`` or ``"learned"``; ``"kernels"``: each is a Gaussian process
            with a kernel of its own (:class:`pp_models.kernel_bank.KernelBank`).
        missing_outputs: as for BayesianNetwork.

    Raises:
        ValueError: an argument out of range.
    """

    @checked(
        num_experts=WIDTH,
        dim_x=FEATURES,
        dim_y=FEATURES,
        experts=one_of(*EXPERTS),
        min_scale=number(0, 1, "[)"),
        width=WIDTH,
        depth=LAYERS,
        representation_dim=WIDTH,
        num_heads=LAYERS,
        concentration=POSITIVE,
        spread=POSITIVE,
        features=one_of(*BASES),
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        num_experts: int = 8,
        dim_x: int = 1,
        dim_y: int = 1,
        experts: str = "context",
        *,
        likelihood: str | Likelihood = "gaussian-head",
        min_scale: float = 0.01,
        width: int = 64,
        depth: int = 3,
        representation_dim: int = 64,
        num_heads: int = 4,
        concentration: float = 1.0,
        spread: float = 1.0,
        path: str = "attention",
        features: str = "fourier",
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.missing_outputs = missing_outputs
        self.num_experts, self.dim_x, self.dim_y, self.experts = num_experts, dim_x, dim_y, experts
        self.representation_dim = representation_dim if experts == "context" else 0
        self.reads_memory = experts != "strict"
        self.likelihood = make_likelihood(likelihood, min_scale=min_scale)
        self.concentration = concentration
        self.outputs = self.likelihood.num_outputs(dim_y)
        if experts == "conjugate":
            if type(self.likelihood) is not GaussianHeadLikelihood:
                raise ValueError(
                    f"likelihood: got {type(self.likelihood).__name__}; conjugate experts are Gaussian, take "
                    "'gaussian-head' or context experts"
                )
            self.attend: Any = ConjugateExperts(num_experts, dim_x, dim_y, width, self.likelihood.min_scale, features)
            return
        if experts == "context":
            self.attend = make_path(path, dim_x, dim_y, width, representation_dim, num_heads)
        self.bank = ExpertBank(
            num_experts, [dim_x + self.representation_dim, *[width] * (depth - 1), self.outputs], dim_y, spread
        )

    def expert_distribution(self, x: Tensor, memory: Tensor | None = None) -> dist.TorchDistribution:
        """p_l(y | x, r) at inputs ``[*B, N, Dx]``: batch ``[*B, N, L]``, event that of one point's y.

        Args:
            x: inputs.
            memory: the site ``memory`` of context or conjugate experts.
        """
        if self.experts == "conjugate":
            assert memory is not None
            return self.attend(x, without_repeats(memory, 2))
        if self.experts == "context":
            assert memory is not None
            found = self.attend(x, without_repeats(memory, 2))
            shape = torch.broadcast_shapes(x.shape[:-1], found.shape[:-1])
            x = torch.cat([x.expand(*shape, -1), found.expand(*shape, -1)], -1)
        return self.likelihood(self.bank(x))

    def expert_log_likelihood(self, data: Dataset, memory: Tensor | None = None) -> Tensor:
        """log p_l(y_i | x_i, r) ``[*B, N, L]`` of observed data."""
        assert data.y is not None
        event = 1 if data.y.dtype.is_floating_point else 0
        observed = None if data.observed is None else data.observed.unsqueeze(-2)
        experts = of_observed(self.expert_distribution(data.x, memory), observed)
        return log_density_of_events(experts, data.y.unsqueeze(-1 - event))

    def mixture(self, weights: Tensor, experts: dist.TorchDistribution) -> dist.TorchDistribution:
        """The experts mixed by weights ``[*B, L]``: batch ``[*B, N]``."""
        log_z = log_weights(weights)
        log_z = (log_z - torch.logsumexp(log_z, -1, keepdim=True)).unsqueeze(-2)
        if isinstance(experts, torch.distributions.Categorical):  # a mixture of categoricals is one
            return categorical(torch.logsumexp(log_z.to(experts.logits).unsqueeze(-1) + experts.logits, -2))
        return ExpertMixture(log_z.to(experts.mean.dtype), experts)

    def forward(self, data: Dataset) -> dist.TorchDistribution:
        """Returns the mixture at every point, batch ``[*B, N]``."""
        self.check(data)
        with task_plates(data.batch_shape, data.x.device):
            weights = pyro.sample("mixture_weights", self.prior(data.x))
            memory = None
            if self.reads_memory:
                memory = pyro.sample("memory", self.attend.flat_prior(data.num_points, data.x))
            mixed = self.mixture(weights, self.expert_distribution(data.x, memory))
            observe(mixed, data)
        return mixed

    def prior(self, like: Tensor) -> LogSpaceDirichlet:
        """Dir(α₀ 1) on the device and in the dtype of ``like``."""
        return LogSpaceDirichlet(like.new_full((self.num_experts,), self.concentration))

    def keep(self, experts: list[int]) -> None:
        """Drops all experts but these, in place.

        Args:
            experts: increasing indices, at least one.
        """
        (self.attend if self.experts == "conjugate" else self.bank).keep(experts)
        self.num_experts = len(experts)

    def conjugate_proposal(
        self, guide_trace: Trace, data: Dataset, sweeps: int = 8
    ) -> dict[str, dist.TorchDistribution]:
        """Approximate posterior of the weights given observed data, with the guide's distribution as the prior.

        Args:
            guide_trace: a trace of the guide on the context.
            data: observed points ``[*B, N]``.
            sweeps: variational updates.

        Returns:
            A distribution over ``mixture_weights`` of the guide's kind.

        Raises:
            ValueError: the guide's distribution over weights is not conjugate.
        """
        memory = guide_trace.nodes["memory"]["value"] if self.reads_memory else None
        found = guide_trace.nodes["mixture_weights"]["fn"]
        log_likelihood = self.expert_log_likelihood(data, memory)
        if isinstance(found, torch.distributions.Dirichlet):
            updated = dirichlet_sweeps(found.concentration, log_likelihood, data.mask, sweeps)
            return {"mixture_weights": LogSpaceDirichlet(updated)}
        if isinstance(found, StickBreaking):
            return {
                "mixture_weights": StickBreaking(
                    *stick_breaking_sweeps(found.a, found.b, log_likelihood, data.mask, sweeps)
                )
            }
        raise ValueError(
            f"guide: its weights are {type(found).__name__}, which has no conjugate update from a mixture's points; "
            "a Dirichlet or a stick-breaking guide has one"
        )


class ExpertBank(nn.Module):
    """L independent multi-layer perceptrons evaluated as one batched product a layer.

    Args:
        num_experts: L.
        widths: input width, hidden widths, output width.
        dim_mean: the first outputs, which get random offsets that tell the experts apart.
        spread: standard deviation of those offsets.
    """

    def __init__(self, num_experts: int, widths: list[int], dim_mean: int, spread: float) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for k_in, k_out in pairwise(widths):
            self.weights.append(nn.Parameter(torch.randn(num_experts, k_in, k_out) * math.sqrt(2 / k_in)))
            self.biases.append(nn.Parameter(torch.zeros(num_experts, 1, k_out)))
        with torch.no_grad():
            self.weights[-1].mul_(0.5)
            self.biases[-1][..., :dim_mean] = spread * torch.randn(num_experts, 1, dim_mean)

    def keep(self, experts: list[int]) -> None:
        """Drops all experts but these, in place."""
        for parameters in (self.weights, self.biases):
            for i, parameter in enumerate(parameters):
                parameters[i] = nn.Parameter(parameter.detach()[experts].clone())
        self.num_experts = len(experts)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs ``[*B, N, K]`` to outputs ``[*B, N, L, O]``."""
        batch = x.shape[:-1]
        hidden = x.reshape(1, -1, x.shape[-1]).expand(self.num_experts, -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden if i == 0 else torch.relu(hidden), weight)
        return hidden.transpose(0, 1).reshape(*batch, self.num_experts, hidden.shape[-1])


@checked(usage=USAGE, threshold=SHARE)
def unused_experts(usage: Tensor, threshold: float = 1e-3) -> Tensor:
    """Indices of experts whose mean weight over tasks lies below a threshold.

    Args:
        usage: mean weights of tasks ``[*B, L]``, as a guide's ``mean_weights`` gives them.
        threshold: below this mean an expert counts as unused.
    """
    return (usage.reshape(-1, usage.shape[-1]).mean(0) < threshold).nonzero().squeeze(-1)


@checked(usage=USAGE)
def effective_experts(usage: Tensor) -> Tensor:
    """exp of the entropy of the mean weights ``[*B, L]`` → ``[*B]``: how many experts a task uses in effect."""
    return torch.special.entr(usage).sum(-1).exp()
