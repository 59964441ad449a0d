"""Low-rank variational dropout as a guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from guides.adapters.adapter_guide import AdapterGuide
from guides.adapters.lrvd_families import (
    FAMILIES,
    LOG_ALPHA_RANGE,
    check_family,
    factor_scales,
    initial_parameters,
    needs_nonzero_B,
    rank_statistic,
    weights_per_rank,
)
from guides.adapters.rank_normal import RankNormal
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.low_rank_layer import RankParameter
from pp_models.arguments import checked


class RankwiseGuide(AdapterGuide):
    """z_k ~ N(1, α_k): one noise-to-signal ratio for each rank-one component (LRVD, the family ``"rank"``).

    See docs/papers/lrvd.md, eq. 3 to 5.

    The other families make the factors random instead, around A and B of the model: ``"weight_tied"`` N(μ, α_k μ²),
    ``"shared_sigma"`` N(μ, σ_k²) in row k of A and column k of B (the released code), ``"asym"`` the same for A alone,
    and ``"untied"`` a variance for every weight. In plain Pyro a draw is shared by the batch.

    Args:
        model: the adapted model. ``"shared_sigma"`` and ``"untied"`` need weights of B that are not 0, and draw new
            ones (U(-1e-3, 1e-3)) where all are.
        family: its name.
        init_log_alpha: where log α (in families that have those: log variances) starts; None for -4 (-8), or, for a
            peft model of this family, where its layers are.

    Raises:
        TypeError: another family of model.
        ValueError: an unknown name.
    """

    @checked()
    def __init__(self, model: LowRankAdapted, family: str = "rank", init_log_alpha: float | None = None) -> None:
        super().__init__(model)
        check_family(family)
        if family != "rank" and model.rank_prior != "log-uniform":
            raise ValueError(
                f"family: got {family!r}, whose multipliers are not random, so that {model.rank_prior!r} as their "
                "prior says nothing; give the model factor_prior='ard' or a scale, and leave rank_prior as it is"
            )
        self.family = family
        self.levels = nn.ModuleList()
        for module in model.rank_modules().values():
            factors = module.factors()
            levels = {}
            if factors is not None:
                if needs_nonzero_B(family) and not bool(factors[1].detach().any()):
                    nn.init.uniform_(factors[1], -1e-3, 1e-3)
                levels = initial_parameters(family, *factors, init_log_alpha)
                stored = [s for s in getattr(module, "lrvd_states", dict)().values() if s.family == family]
                if stored and init_log_alpha is None:
                    levels = {name: value.detach().clone() for name, value in stored[0].parameters.items()}
            self.levels.append(nn.ParameterDict({name: nn.Parameter(value) for name, value in levels.items()}))

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        levels = dict(self.levels[index].items())  # type: ignore[operator]
        if self.family == "rank":
            site = f"{path}.rank_scale"
            log_alpha = levels["log_alpha"].clamp(*LOG_ALPHA_RANGE)
            posterior = RankNormal(torch.ones_like(log_alpha), log_alpha)
            self.update_ard(site, posterior)
            with poutine.scale(scale=self.model.kl_scale(path)):
                return {site: pyro.sample(site, posterior.to_event(1))}
        values = self.point_rank_scale(path, lora_A)
        if self.family == "weight_tied":
            log_alpha = levels["log_alpha"].clamp(*LOG_ALPHA_RANGE)
            values |= self.factor(path, "lora_A", RankNormal(lora_A, log_alpha.unsqueeze(-1)))
            return values | self.factor(path, "lora_B", RankNormal(lora_B, log_alpha))
        scale_A, scale_B = factor_scales(self.family, lora_A, lora_B, levels)
        assert scale_A is not None
        values |= self.factor(path, "lora_A", dist.Normal(lora_A, scale_A.expand_as(lora_A)))
        if scale_B is None:
            return values
        return values | self.factor(path, "lora_B", dist.Normal(lora_B, scale_B.expand_as(lora_B)))

    def weights_per_rank(self, path: str) -> int:
        lora_A, lora_B = self.model.rank_modules()[path].factors()  # type: ignore[misc]
        return weights_per_rank(self.family, lora_A, lora_B)

    def rank_log_alpha(self) -> dict[str, Tensor]:
        """log noise-to-signal ratio of each rank ``[r]`` by module path, copied; modules without ranks are left out."""
        found = {}
        for path, levels in zip(self.paths, self.levels, strict=True):
            factors = self.model.rank_modules()[path].factors()
            if factors is not None:
                own: Any = levels
                found[path] = rank_statistic(self.family, *factors, dict(own.items())).detach().clone()
        return found

    def rank_parameters(self, path: str) -> list[RankParameter]:
        levels = self.levels[self.paths.index(path)]
        own = [RankParameter(levels, name, 1 if name == "log_variance_B" else 0) for name in FAMILIES[self.family]]
        return own + self.model.ard_parameters(path)

    def store(self) -> None:
        """Writes the noise levels into the layers of a peft model, whose ``save_pretrained`` then saves them.

        Raises:
            ValueError: the model is no peft model of this family.
        """
        for path, levels in zip(self.paths, self.levels, strict=True):
            module = self.model.rank_modules()[path]
            if module.factors() is None:
                continue
            states = [s for s in getattr(module, "lrvd_states", dict)().values() if s.family == self.family]
            if not states:
                raise ValueError(f"model: layer {path!r} is no peft layer of family {self.family!r} to store in")
            with torch.no_grad():
                for name, value in levels.items():  # type: ignore[operator]
                    states[0].parameters[name].copy_(value)
