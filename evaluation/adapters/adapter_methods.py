"""Ways to train a low-rank adapter, by name: LRVD, its controls, and what users would compare it with.

Every method adapts the same linear layers of the same frozen transformer by ``peft``, and differs only in what it adds:
noise, a penalty, a gate. ``peft`` is imported inside the calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from guides.adapters.blob_layers import lora_layers
from inference.adapters.bayesian_adapters import sampling
from inference.adapters.lrvd_training import TRAVEL, log_alpha_learning_rate
from pp_models.adapters.tempering import Tempering
from pp_models.adapters.text_networks import TextNetwork
from pp_models.data import DataError


@dataclass(frozen=True)
class AdapterBudget:
    """What every method gets alike.

    Args:
        steps: optimizer steps; the learning rate falls linearly to 0.
        batch_size: texts a step.
        rank: r of every layer.
        lora_alpha: s = lora_alpha / r.
        learning_rate: of AdamW for factors and head, without weight decay.
        max_grad_norm: gradient norms are clipped to this.
        temperature: T of LRVD's KL, counted once a rank; 1 is the evidence bound.
        travel: the sum of the learning rates of log α (or log σ²) over the run; less than about 12 prunes nothing.
        draws: S of Monte-Carlo predictions.
        max_len: tokens a text.
        half_frozen: whether the frozen layers' products are taken in bfloat16.
    """

    steps: int = 300
    batch_size: int = 16
    rank: int = 8
    lora_alpha: int = 16
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    travel: float = TRAVEL
    draws: int = 10
    max_len: int = 40
    half_frozen: bool = False


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise DataError("peft: the package is missing; pip install guidebook[adapters]") from None
    return peft


class PlainLora:
    """LoRA, a point estimate; the other methods change what they must.

    Args:
        budget: ranks, steps and rates.
        num_data: N.
    """

    #: whether predictions are Monte-Carlo means over draws
    stochastic = False

    def __init__(self, budget: AdapterBudget, num_data: int) -> None:
        self.budget, self.num_data = budget, num_data
        self.model: Any = None
        self.transposed = False

    def adapt(self, base: TextNetwork) -> nn.Module:
        """The transformer with fresh adapters, its other parameters frozen."""
        peft = _peft()
        # GPT-2's Conv1D keeps the transpose of a linear layer's weight
        self.transposed = any(type(module).__name__ == "Conv1D" for module in base.network.modules())
        with warnings.catch_warnings():
            # transformers 5 says it of its own attribute, which peft reads
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            self.model = peft.get_peft_model(base.network, self.config(base.targets))
        self.prepare()
        return self.model

    def config(self, targets: str) -> Any:
        """peft's configuration."""
        return _peft().LoraConfig(**self._options(targets))

    def _options(self, targets: str) -> dict[str, Any]:
        found = {"r": self.budget.rank, "lora_alpha": self.budget.lora_alpha, "target_modules": targets}
        return found | {"fan_in_fan_out": self.transposed}

    def prepare(self) -> None:
        """Adds parameters or hooks to the adapted model."""

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained at :meth:`scale_rate` instead of the learning rate."""
        return []

    def scale_rate(self) -> float:
        """The first learning rate of :meth:`scale_parameters`: over the run they can travel by ``budget.travel``."""
        return log_alpha_learning_rate(self.budget.steps, self.budget.travel)

    def penalty(self, step: int) -> Tensor | float:
        """Added to the mean NLL at a step."""
        return 0.0

    def after_step(self, step: int, rate: float) -> None:
        """After the optimizer's step, gradients still there; ``rate`` is the schedule's factor."""

    def drawing(self, draws: int, seed: int) -> Any:
        """A context in which every pass over ``for _ in draws`` is a posterior draw."""
        return sampling(self.model, draws, seed) if self.stochastic else nullcontext(range(draws))

    def log_alpha(self) -> dict[str, Tensor]:
        """log noise-to-signal ratio by module, where the method has one."""
        return {}

    def ranks(self) -> dict[str, int]:
        """Ranks in use by module."""
        return {path: len(layer.lora_A["default"].weight) for path, layer in lora_layers(self.model).items()}


class LoraDropout(PlainLora):
    """Dropout on the adapters' inputs, on in prediction too (MC dropout)."""

    stochastic = True

    def __init__(self, budget: AdapterBudget, num_data: int, rate: float = 0.1) -> None:
        super().__init__(budget, num_data)
        self.rate = rate

    def _options(self, targets: str) -> dict[str, Any]:
        return super()._options(targets) | {"lora_dropout": self.rate}


class Lrvd(PlainLora):
    """Rank-wise variational dropout, KL counted once a rank and weighted κ / N after a warm-up of a fifth of the steps.

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        family: see ``guides.LrvdConfig``.
        frozen: a value at which log α stays, without KL: noise alone, as a control.
        kappa: times the budget's temperature, κ.
    """

    stochastic = True

    def __init__(
        self,
        budget: AdapterBudget,
        num_data: int,
        family: str = "rank",
        frozen: float | None = None,
        kappa: float = 1.0,
    ) -> None:
        super().__init__(budget, num_data)
        self.family, self.frozen, self.kappa = family, frozen, kappa

    def config(self, targets: str) -> Any:
        _peft()
        from guides.adapters.lrvd_peft import LrvdConfig

        return LrvdConfig(**self._options(targets), family=self.family, noise="sequence", init_log_alpha=self.frozen)

    def prepare(self) -> None:
        if self.frozen is not None:
            for parameter in self._scales():
                parameter.requires_grad_(False)

    def _scales(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if ".lora_lrvd_" in name]

    def scale_parameters(self) -> list[nn.Parameter]:
        return [] if self.frozen is not None else self._scales()

    def penalty(self, step: int) -> Tensor | float:
        from guides.adapters.lrvd_layers import kl_divergence

        if self.frozen is not None:
            return 0.0
        warmup = max(1.0, 0.2 * self.budget.steps)
        weighed = Tempering(self.num_data, temperature=self.kappa * self.budget.temperature, warmup_steps=warmup)
        return weighed.beta(step) * weighed.kappa() / self.num_data * kl_divergence(self.model, "rank")

    def drawing(self, draws: int, seed: int) -> Any:
        from guides.adapters.lrvd_layers import sampling

        return sampling(self.model, draws, seed, noise="sequence")

    def log_alpha(self) -> dict[str, Tensor]:
        from guides.adapters.lrvd_layers import rank_log_alpha

        return rank_log_alpha(self.model)


class Blob(PlainLora):
    """A mean-field Gaussian over A by flipout, prior N(0, 0.2²) (after BLoB, Wang et al. 2024).

    Its KL has hundreds of weights for every rank; ``kl_weight`` tempers it, as BLoB's own reweighting does.
    """

    stochastic = True

    def __init__(
        self,
        budget: AdapterBudget,
        num_data: int,
        prior_scale: float = 0.2,
        scale: float = 2e-3,
        kl_weight: float = 0.02,
    ) -> None:
        super().__init__(budget, num_data)
        self.prior_scale, self.scale, self.kl_weight = prior_scale, scale, kl_weight
        self.log_scales = nn.ParameterList()
        self.factors: list[Any] = []

    def prepare(self) -> None:
        from guides.adapters.blob_layers import blob

        self.factors = blob(self.model, self.scale, self.prior_scale)
        self.log_scales = nn.ParameterList([factor.log_scale for factor in self.factors])

    def scale_parameters(self) -> list[nn.Parameter]:
        return list(self.log_scales)

    def scale_rate(self) -> float:
        return 0.5 * super().scale_rate()

    def penalty(self, step: int) -> Tensor | float:
        from guides.adapters.blob_layers import blob_kl

        return self.kl_weight / self.num_data * sum((blob_kl(f) for f in self.factors), torch.zeros(()))


class Sora(PlainLora):
    """A gate on every rank, thinned by a proximal L1 step (SoRA, Ding et al. 2023).

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        shrinkage: how far a gate that the likelihood does not hold falls over the run; gates start at 1.
    """

    def __init__(self, budget: AdapterBudget, num_data: int, shrinkage: float = 1.5) -> None:
        super().__init__(budget, num_data)
        self.shrinkage = shrinkage
        self.gates = nn.ParameterList()

    def prepare(self) -> None:
        for layer in lora_layers(self.model).values():
            lora_a = layer.lora_A["default"]
            gate = nn.Parameter(torch.ones(len(lora_a.weight)))
            lora_a.register_parameter("gate", gate)
            self.gates.append(gate)
            lora_a.register_forward_hook(lambda module, inputs, output: output * module.gate)

    def scale_parameters(self) -> list[nn.Parameter]:
        return list(self.gates)

    def scale_rate(self) -> float:
        return 5 * self.budget.learning_rate

    @torch.no_grad()
    def after_step(self, step: int, rate: float) -> None:
        shrink = self.shrinkage * rate / (0.5 * (self.budget.steps + 1))
        for gate in self.gates:
            gate.copy_(gate.sign() * (gate.abs() - shrink).clamp_min(0.0))

    def ranks(self) -> dict[str, int]:
        return {path: int((layer.lora_A["default"].gate != 0).sum()) for path, layer in lora_layers(self.model).items()}


class AdaLora(PlainLora):
    """peft's AdaLoRA: singular triplets by importance, down to a quarter of the ranks (Zhang et al. 2023)."""

    def config(self, targets: str) -> Any:
        steps = self.budget.steps
        return _peft().AdaLoraConfig(
            init_r=self.budget.rank,
            target_r=max(1, self.budget.rank // 4),
            tinit=steps // 10,
            tfinal=steps // 4,
            deltaT=max(1, steps // 40),
            total_step=steps,
            lora_alpha=self.budget.lora_alpha,
            target_modules=targets,
        )

    def penalty(self, step: int) -> Tensor | float:
        total: Tensor | float = 0.0
        layers = lora_layers(self.model).values()
        for layer in layers:
            for factor in (layer.lora_A["default"], layer.lora_B["default"].mT):
                gram = factor @ factor.mT
                total = total + (gram - torch.eye(len(gram), device=gram.device)).norm()
        weight = self.model.peft_config["default"].orth_reg_weight
        return weight * total / (2 * len(layers))

    def after_step(self, step: int, rate: float) -> None:
        self.model.base_model.update_and_allocate(step)

    def ranks(self) -> dict[str, int]:
        return {path: int((layer.lora_E["default"] != 0).sum()) for path, layer in lora_layers(self.model).items()}


class Pvera(PlainLora):
    """peft's PVeRA: shared random factors, learned vectors, Gaussian activations between them (Leboeuf et al. 2025).

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        rank: of the shared factors; its vectors have so many numbers, so that it is no rank of LoRA's.
        rate: learning rate of the vectors.
    """

    stochastic = True

    def __init__(self, budget: AdapterBudget, num_data: int, rank: int = 256, rate: float = 1e-2) -> None:
        super().__init__(budget, num_data)
        self.rank, self.rate = rank, rate

    def config(self, targets: str) -> Any:
        return _peft().PveraConfig(r=self.rank, target_modules=targets, projection_prng_key=0)

    def scale_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if "pvera_lambda" in name]

    def scale_rate(self) -> float:
        return self.rate

    def ranks(self) -> dict[str, int]:
        layers = {path: m for path, m in self.model.named_modules() if hasattr(m, "pvera_lambda_d")}
        return dict.fromkeys(layers, self.rank)


class MonteClora(PlainLora):
    """peft's MonteCLoRA: a mixture of Gaussian perturbations of A, with its variational loss (Das et al. 2024).

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        sample_scaler: how large the perturbations are.
        samples: of the mixture.
    """

    stochastic = True

    def __init__(self, budget: AdapterBudget, num_data: int, sample_scaler: float = 5e-3, samples: int = 4) -> None:
        super().__init__(budget, num_data)
        self.sample_scaler, self.samples = sample_scaler, samples

    def _options(self, targets: str) -> dict[str, Any]:
        config = _peft().MontecloraConfig(num_samples=self.samples, sample_scaler=self.sample_scaler, buffer_size=8)
        return super()._options(targets) | {"monteclora_config": config}

    def penalty(self, step: int) -> Tensor | float:
        return self.model.base_model._get_monteclora_loss()


#: by name; each is called with the budget and N
ADAPTER_METHODS: dict[str, Callable[[AdapterBudget, int], PlainLora]] = {
    "lora": PlainLora,
    "lora-dropout": LoraDropout,
    "adalora": AdaLora,
    "sora": Sora,
    "blob": Blob,
    "fixed-noise": partial(Lrvd, frozen=0.0),
    "pvera": Pvera,
    "monteclora": MonteClora,
    "lrvd": Lrvd,
    "lrvd-kappa-3": partial(Lrvd, kappa=3.0),
    "lrvd-shared-sigma": partial(Lrvd, family="shared_sigma"),
}
