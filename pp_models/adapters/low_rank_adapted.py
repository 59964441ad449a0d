"""A frozen network with low-rank updates whose ranks carry latent multipliers: the model family of LRVD."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.substitute_messenger import SubstituteMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pp_models.adapters.called_layers import check_called, watch_layers
from pp_models.adapters.low_rank_layer import FactorDraws, RankModule, RankParameter, adapt, linear_sizes
from pp_models.adapters.low_rank_priors import RANK_PRIORS, CentredCauchy
from pp_models.adapters.per_example_noise import rows_with_noise
from pp_models.adapters.tempering import Tempering
from pp_models.arguments import (
    CALLABLE,
    POSITIVE,
    SCALE,
    TEXT,
    WIDTH,
    checked,
    each,
    either,
    instance,
    named,
    number,
    one_of,
)
from pp_models.contract import Model
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.log_uniform import LogUniform
from pp_models.observation_model import observe
from pp_models.single_precision import single
from pp_models.task_plates import task_plates, without_repeats

#: where the improper prior is cut so that the model can be sampled; its density goes on as 1/|z| outside
PRIOR_RANGE = (1e-3, 1e3)
#: rows of the backbone's input that draws are folded into at once
MAX_ROWS = 2**16


class LowRankAdapted(Model):
    """A frozen backbone with updates s B diag(z) A in some of its linear layers, as a Pyro model of one Dataset.

    See docs/papers/lrvd.md, eq. 1.

    A, B and whatever ``trainable`` names are parameters (point estimates); the multipliers z are latent, shared by all
    tasks. Sites: ``{module path}.rank_scale`` ``[r]`` under ``rank_prior``, and ``y``. A guide that makes a factor
    itself random samples ``{module path}.lora_A`` ``[r, k_in]``, ``.lora_B`` ``[k_out, r]`` or ``.input_mask``
    ``[k_in]`` too; the model has those sites where it is run with such a guide, and only there.

    How heavily the KL weighs, its warm-up and the number of data are the objective's:
    ``inference.objectives.make("tempered-elbo", ...)``.

    Args:
        backbone: any module whose input's first dimension is that of examples; it is frozen and changed in place. Or a
            peft model adapted with ``guides.LrvdConfig``, whose layers and parameters are then used.
        targets: linear layers to adapt: endings of module paths, a regular expression for whole paths, or
            ``"all-linear"``. None for a peft model.
        rank: r.
        lora_alpha: s = lora_alpha / r.
        likelihood: ``"categorical"``, ``"gaussian"``, … or a Likelihood, of the backbone's outputs.
        noise_scale: of the Gaussian likelihood.
        rank_prior: of the multipliers: ``"log-uniform"`` (the paper's, improper; cut where it is sampled), or a proper
            one: ``"half-cauchy"`` (of their magnitudes, scale 1) or ``"ard"``, N(0, s_k²), whose s_k² a guide in
            training sets to its best value, the second moment of its own z_k.
        factor_prior: prior of factors that a guide makes random: ``"log-uniform"``, ``"ard"``, or the scale of
            N(0, scale²).
        lora_dropout: rate of dropout on the updates' inputs in training.
        trainable: endings of the paths of further modules that are trained, such as a classifier.
        base_dropout: whether the backbone's own dropout is on in training mode.
        call: how the backbone is applied, ``call(backbone, x)`` with x ``[rows, Dx]`` for outputs ``[rows, K]``. By
            default a Hugging Face model gets x as token ids (with an attention mask where they differ from its padding
            id) and its logits are the outputs; other modules are called with x.
        fold_draws: evaluate many posterior draws as blocks of one larger batch; False runs them one by one. By default
            only for backbones that are not Hugging Face's, whose layers may see tensors without rows.
        **tempering: ``kl_count``, ``kl_weight``, ``temperature``, ``warmup_steps`` and ``num_data`` of
            :class:`Tempering`, which then weighs the sites of model and guide under every objective. Deprecated: they
            are the objective's.

    Raises:
        ValueError: an argument out of range, or targets that name no linear layer.
    """

    #: one network's multipliers, whatever the task
    shares_latents = True

    @checked(
        backbone=instance(nn.Module),
        targets=either(str, other=each(TEXT)),
        trainable=each(TEXT),
        call=CALLABLE,
        rank=WIDTH,
        lora_alpha=POSITIVE,
        noise_scale=SCALE,
        rank_prior=one_of(*RANK_PRIORS),
        factor_prior=named("log-uniform", "ard", other=POSITIVE),
        lora_dropout=number(0, 1, "[)"),
    )
    def __init__(
        self,
        backbone: nn.Module,
        targets: str | Sequence[str] | None = None,
        rank: int = 8,
        lora_alpha: float = 16.0,
        likelihood: str | Likelihood = "categorical",
        noise_scale: float = 0.1,
        *,
        rank_prior: str = "log-uniform",
        factor_prior: str | float = "log-uniform",
        lora_dropout: float = 0.0,
        trainable: Sequence[str] = (),
        base_dropout: bool = False,
        call: Callable[[nn.Module, Tensor], Tensor] | None = None,
        fold_draws: bool | None = None,
        **tempering: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(tempering) - {f.name for f in fields(Tempering)})
        if unknown:
            raise TypeError(f"LowRankAdapted got an unexpected argument {unknown[0]!r}")
        self.tempering = Tempering(**tempering) if tempering else None
        if tempering:
            warnings.warn(
                f"{', '.join(sorted(tempering))}: the weight of the KL belongs to the objective; give it to "
                "inference.objectives.make('tempered-elbo', ...) instead",
                DeprecationWarning,
                stacklevel=2,
            )
        self.factor_prior, self.rank_prior = factor_prior, rank_prior
        self.base_dropout, self.call = base_dropout, call
        self.likelihood = make_likelihood(likelihood, noise_scale)
        adapt(backbone, targets, rank, lora_alpha, lora_dropout, trainable)
        watch_layers(backbone)
        self.backbone = backbone
        self._checked = False
        # layers stay the same objects, and to find them takes a walk through the whole backbone
        self._rank_modules = {
            name.removeprefix("base_model.model."): module
            for name, module in backbone.named_modules()
            if isinstance(module, RankModule)
        }
        self.ard_scales = nn.ParameterDict()
        for path, module in self._rank_modules.items():
            factors = module.factors()
            if factors is not None and rank_prior == "ard":
                self._add_ard_scale(f"{path}.rank_scale", factors[0][:, 0])
            if factors is not None and factor_prior == "ard":
                self._add_ard_scale(f"{path}.lora_A", factors[0])
                self._add_ard_scale(f"{path}.lora_B", factors[1])
        self.fold_draws = not _is_hugging_face(backbone) if fold_draws is None else fold_draws
        self.register_buffer("guide_calls", torch.zeros(()))
        self.train(self.training)

    guide_calls: Tensor

    def rank_modules(self) -> dict[str, RankModule]:
        """The adapted layers by module path."""
        return self._rank_modules

    def train(self, mode: bool = True) -> LowRankAdapted:
        """As usual, but the backbone's own dropout stays off: the adapter's noise is to be the only one."""
        super().train(mode)
        if not self.base_dropout:
            self.backbone.eval()
            for module in self.rank_modules().values():
                getattr(module, "lora_dropout", nn.Identity()).train(mode)
        return self

    # -- the scales of ARD priors --------------------------------------------------------------------------------------

    def _add_ard_scale(self, site: str, like: Tensor) -> None:
        scale = torch.ones_like(like, requires_grad=False)
        self.ard_scales[_key(site)] = nn.Parameter(scale, requires_grad=False)

    def ard_scale(self, site: str) -> nn.Parameter | None:
        """Standard deviations of a site's prior N(0, s²), of the site's own shape; None where its prior is another."""
        return self.ard_scales.get(_key(site), None)

    def ard_parameters(self, path: str) -> list[RankParameter]:
        """Those scales of a module that have an entry for each rank."""
        keys = {name: _key(f"{path}.{name}") for name in ("rank_scale", "lora_A", "lora_B")}
        return [
            RankParameter(self.ard_scales, key, 1 if name == "lora_B" else 0)
            for name, key in keys.items()
            if key in self.ard_scales
        ]

    @torch.no_grad()
    def update_ard(self, site: str, mean: Tensor, variance: Tensor) -> None:
        """Sets s² of a site to the second moment of its posterior, where the KL to N(0, s²) is least.

        The bound's gradient at the best scale is the gradient of the bound maximised over it, so that guides call this
        and nothing else is needed. Sites with other priors are left alone.
        """
        scale = self.ard_scale(site)
        if scale is not None:
            scale.copy_((single(mean).square() + variance).clamp_min(1e-20).sqrt())

    # -- the weight of the KL, where it was given to the model ---------------------------------------------------------

    def advance(self) -> None:
        """One more step of the warm-up; guides call it where they train."""
        if self.tempering is not None and self.training and self.tempering.warmup_steps and torch.is_grad_enabled():
            self.guide_calls += 1

    def data_scale(self, data: Dataset) -> float | Tensor:
        """N over the points there are, where the model was told N."""
        num_data = None if self.tempering is None or data.y is None else self.tempering.num_data
        return 1.0 if num_data is None else num_data / data.counts.sum().clamp_min(1)

    def num_weights(self, path: str) -> int:
        """Weights of A and B in one rank of a module."""
        layer: Any = self._rank_modules[path]
        k_in, k_out = linear_sizes(layer.base_layer) or (0, 0)
        return k_in + k_out

    def effective_temperature(self, path: str | None = None) -> float:
        """κ: what a rank's KL is multiplied by against the summed log-likelihood; 1 where the objective says it.

        Args:
            path: of one module; None for the mean over modules, which differ where weights are counted.
        """
        if self.tempering is None:
            return 1.0
        paths = list(self._rank_modules) if path is None else [path]
        counts = [self.num_weights(p) if self.tempering.kl_count == "weights" else 1 for p in paths]
        return self.tempering.kappa(sum(counts) / max(len(counts), 1))

    def kl_scale(self, path: str) -> float | Tensor:
        """What multiplies the KL of a module's ranks at this step."""
        if self.tempering is None:
            return 1.0
        return self.effective_temperature(path) * self.tempering.beta(self.guide_calls - 1)

    def weight_kl_scale(self, path: str, weights_per_rank: int) -> float | Tensor:
        """The same for each weight of random factors of which a rank has ``weights_per_rank``."""
        if self.tempering is None:
            return 1.0
        return self.kl_scale(path) / (weights_per_rank if self.tempering.kl_count == "rank" else self.num_weights(path))

    # -- the program ---------------------------------------------------------------------------------------------------

    def forward(self, data: Dataset) -> Tensor:
        """Returns the backbone's outputs ``[*B, N, K]``, a draw's in front where there are many."""
        draws = {}
        for path, module in self.rank_modules().items():
            factors = module.factors()
            if factors is not None:
                draws[path] = self._sample(path, *factors)
        outputs = self._outputs(data, draws)
        if data.y is not None:
            self.likelihood.check(data.y, outputs.shape[-1])
        scale = self.data_scale(data)
        with task_plates(data.batch_shape, data.x.device), poutine.scale(scale=scale):
            observe(self.likelihood(outputs), data)
        return outputs

    def _sample(self, path: str, lora_A: Tensor, lora_B: Tensor) -> FactorDraws:
        """The sites of one module."""
        with poutine.scale(scale=self.kl_scale(path)):
            prior = self._prior(f"{path}.rank_scale", self.rank_prior, lora_A[:, 0]).to_event(1)
            found = {"rank_scale": pyro.sample(f"{path}.rank_scale", prior)}
        shapes = {"lora_A": lora_A.shape, "lora_B": lora_B.shape}
        offered = [name for name in shapes if _is_offered(f"{path}.{name}")]
        per_rank = sum(shapes[name].numel() for name in offered) // lora_A.shape[0]
        for name in offered:
            prior = self._prior(f"{path}.{name}", self.factor_prior, {"lora_A": lora_A, "lora_B": lora_B}[name])
            with poutine.scale(scale=self.weight_kl_scale(path, per_rank)):
                found[name] = pyro.sample(f"{path}.{name}", prior.to_event(2))
        if _is_offered(f"{path}.input_mask"):
            flat = dist.Normal(torch.zeros_like(lora_A[0]), 1.0).to_event(1).mask(False)
            found["input_mask"] = pyro.sample(f"{path}.input_mask", flat)
        event_dims = {"rank_scale": 1, "input_mask": 1}
        drawn: dict[str, Any] = {name: _as_draws(value, event_dims.get(name, 2)) for name, value in found.items()}
        return FactorDraws(**drawn)

    def _prior(self, site: str, prior: str | float, like: Tensor) -> dist.TorchDistribution:
        """The prior of one site's entries, of the shape of ``like``."""
        zero = torch.zeros_like(like.detach())
        if prior == "log-uniform":
            low, high = (zero.new_tensor(v) for v in PRIOR_RANGE)
            return LogUniform(low, high).expand(zero.shape)
        if prior == "half-cauchy":
            return CentredCauchy(zero, 1.0)
        if prior == "ard":  # a copy, for guides change it in place before a gradient is taken
            return dist.Normal(zero, self.ard_scales[_key(site)].clone())
        return dist.Normal(zero, float(prior))

    def _outputs(self, data: Dataset, draws: dict[str, FactorDraws]) -> Tensor:
        rows = data.x.reshape(-1, data.x.shape[-1])
        count = max((d.count for d in draws.values()), default=1)
        own = rows_with_noise() if count > 1 else None  # a draw for each row
        if own not in (None, len(rows)):
            raise ValueError(f"per_example_noise: got rows = {own}; the model is run on {len(rows)}")
        if own is not None:
            count, draws = count // own, {path: replace(d, of_rows=True) for path, d in draws.items()}
        at_once = max(1, min(count, MAX_ROWS // max(len(rows), 1))) if self.fold_draws else 1
        parts = []
        for start in range(0, count, at_once):
            size = min(at_once, count - start)
            each = own or 1
            self._attach(draws if size == count else {p: d.select(start * each, size * each) for p, d in draws.items()})
            parts.append(self._call(rows if size == 1 else rows.repeat(size, 1)).unflatten(0, (size, -1)))
        if len(parts) > 1 or not any(getattr(m, "gradient_checkpointing", False) for m in self.backbone.modules()):
            self._attach({})  # a checkpointed backbone needs its draws once more, in the backward pass
        outputs = torch.cat(parts) if len(parts) > 1 else parts[0]
        shape = (*data.x.shape[:-1], outputs.shape[-1])
        return outputs.reshape(shape if count == 1 else (count, *shape))

    def outputs(self, x: Tensor) -> Tensor:
        """The backbone's outputs ``[rows, K]`` at inputs ``[rows, Dx]`` with every multiplier 1: the posterior mean."""
        self._attach({})
        return self._call(x)

    def _attach(self, draws: dict[str, FactorDraws]) -> None:
        for path, module in self.rank_modules().items():
            module.draws = draws.get(path)

    def _call(self, x: Tensor) -> Tensor:
        outputs = self._run(x)
        if not self._checked and not torch.compiler.is_compiling():
            check_called(self.backbone)
            self._checked = True
        return outputs

    def _run(self, x: Tensor) -> Tensor:
        if self.call is not None:
            return self.call(self.backbone, x)
        if not _is_hugging_face(self.backbone):
            return self.backbone(x)
        ids = x.long()
        padding = getattr(self.backbone.config, "pad_token_id", None)
        options = {} if padding is None else {"attention_mask": (ids != padding).long()}
        return self.backbone(input_ids=ids, **options).logits


def _is_hugging_face(backbone: nn.Module) -> bool:
    return hasattr(getattr(backbone, "config", None), "model_type")


def _is_offered(name: str) -> bool:
    """Whether a handler around the model has a value for a site: a replayed guide, or given data."""
    for handler in _PYRO_STACK:
        if isinstance(handler, ReplayMessenger) and handler.trace is not None and name in handler.trace.nodes:
            return True
        if isinstance(handler, ConditionMessenger | SubstituteMessenger):
            given = handler.data
            if name in (given.nodes if isinstance(given, Trace) else given):
                return True
    return False


def _as_draws(value: Tensor, event_dims: int) -> Tensor:
    """``[*batch, *event]`` as ``[S, *event]``, S = 1 where all draws are one."""
    event = value.shape[value.dim() - event_dims :]
    return without_repeats(value, event_dims).reshape(-1, *event)


def _key(site: str) -> str:
    """Name of a site's scales among the parameters, which have no dots."""
    return site.replace(".", ":")
