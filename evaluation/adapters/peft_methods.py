"""Rivals of LRVD that peft has, or whose noise or gates are hooks of peft's layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.adapters.adapter_method import AdapterBudget, PlainLora, require_peft
from guides.adapters.blob_layers import lora_layers, weight_kl

#: log standard deviation of a weight that is 0
NO_NOISE = -30.0


class LoraDropout(PlainLora):
    """Dropout on the adapters' inputs, on in prediction too (MC dropout)."""

    stochastic = True

    def __init__(self, budget: AdapterBudget, num_data: int, rate: float = 0.1) -> None:
        super().__init__(budget, num_data)
        self.rate = rate

    def _options(self, targets: str) -> dict[str, Any]:
        return super()._options(targets) | {"lora_dropout": self.rate}


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

    def penalty(self) -> Tensor | float:
        from guides.adapters.blob_layers import blob_kl

        return self.kl_weight / self.num_data * sum((blob_kl(f) for f in self.factors), torch.zeros(()))


class SparseSubspace(Blob):
    """The same on a tenth of the weights of A, which moves in training; the others are 0 (after SSVI, Li et al. 2024).

    Twenty times, until three quarters of the steps are done, a fifth of the weights, those of least |mean| over
    standard deviation, is exchanged for as many of the others, those of the largest gradient.

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        density: share of the weights that are not 0.
    """

    def __init__(self, budget: AdapterBudget, num_data: int, density: float = 0.1) -> None:
        super().__init__(budget, num_data)
        self.density = density

    @property
    def active(self) -> list[Tensor]:
        """By factor which weights are not 0."""
        return [factor.active for factor in self.factors]

    def prepare(self) -> None:
        super().prepare()
        scores = [torch.rand_like(factor.weight) for factor in self.factors]
        chosen = largest(scores, max(1, round(self.density * sum(s.numel() for s in scores))))
        for factor, active in zip(self.factors, chosen, strict=True):
            factor.register_buffer("active", active, persistent=False)  # it moves with the factor
        self._empty()

    @torch.no_grad()
    def _empty(self) -> None:
        for factor in self.factors:
            factor.weight.mul_(factor.active)
            factor.log_scale.masked_fill_(~factor.active, NO_NOISE)

    def penalty(self) -> Tensor | float:
        total = torch.zeros((), device=self.factors[0].weight.device)
        for factor in self.factors:
            total = total + torch.where(factor.active, weight_kl(factor, factor.blob_prior), 0.0).sum()
        return self.kl_weight / self.num_data * total

    @torch.no_grad()
    def after_step(self, step: int, rate: float) -> None:
        if step < 0.75 * self.budget.steps and (step + 1) % max(1, self.budget.steps // 27) == 0:
            self._move()
        self._empty()

    def _move(self) -> None:
        count = sum(int(active.sum()) for active in self.active)
        gone = max(1, count // 5)
        signal = [factor.weight.abs() / factor.log_scale.exp() for factor in self.factors]
        kept = largest([s.where(a, -1.0) for s, a in zip(signal, self.active, strict=True)], count - gone)
        pull = [factor.weight.grad.abs() + 1e-12 for factor in self.factors]
        taken = largest([p.where(~a, -1.0) for p, a in zip(pull, self.active, strict=True)], gone)
        for factor, old, new in zip(self.factors, kept, taken, strict=True):
            factor.active.copy_(old | new)
            factor.log_scale.masked_fill_(new, math.log(self.scale))


def largest(scores: list[Tensor], count: int) -> list[Tensor]:
    """Masks of the largest scores of several tensors together."""
    flat = torch.cat([score.flatten() for score in scores])
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, flat.topk(count).indices, True)
    return [part.view_as(score) for part, score in zip(chosen.split([s.numel() for s in scores]), scores, strict=True)]


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
        return require_peft().AdaLoraConfig(
            init_r=self.budget.rank,
            target_r=max(1, self.budget.rank // 4),
            tinit=steps // 10,
            tfinal=steps // 4,
            deltaT=max(1, steps // 40),
            total_step=steps,
            lora_alpha=self.budget.lora_alpha,
            target_modules=targets,
        )

    def penalty(self) -> Tensor | float:
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
        return require_peft().PveraConfig(r=self.rank, target_modules=targets, projection_prng_key=0)

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
        config = require_peft().MontecloraConfig(
            num_samples=self.samples, sample_scaler=self.sample_scaler, buffer_size=8
        )
        return super()._options(targets) | {"monteclora_config": config}

    def penalty(self) -> Tensor | float:
        return self.model.base_model._get_monteclora_loss()
