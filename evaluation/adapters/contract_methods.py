"""LRVD, its controls, and a rival that are guides over the ranks or factors of the same layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from evaluation.adapters.adapter_method import AdapterBudget, PlainLora, Programs, require_peft
from evaluation.adapters.adapter_reader import AdaptedReader, likelihood_of, read
from guides.adapters.adapter_guide import AdapterGuide
from guides.adapters.nested_dropout import NestedDropoutAdapterGuide
from guides.adapters.rankwise import RankwiseGuide
from inference.objectives import make
from pp_models.adapters.low_rank_adapted import LowRankAdapted


class OnContract(PlainLora):
    """A guide over the ranks or factors of peft's LRVD layers, fitted by ``tempered-elbo``.

    Every text has noise of its own. The KL is weighted κ / N after a warm-up of a fifth of the steps.
    """

    #: see ``guides.LrvdConfig``; the value at which log α stays; and κ, which multiplies the budget's temperature
    family = "rank"
    frozen: float | None = None
    kappa = 1.0
    guide: AdapterGuide

    def config(self, targets: str) -> Any:
        require_peft()
        from guides.adapters.lrvd_peft import LrvdConfig

        return LrvdConfig(**self._options(targets), family=self.family, noise="sequence", init_log_alpha=self.frozen)

    def prepare(self) -> None:
        for name, parameter in self.model.named_parameters():
            if ".lora_lrvd_" in name:
                parameter.requires_grad_(False)  # the guide has its own

    def make_guide(self, model: LowRankAdapted) -> AdapterGuide:
        """The guide over the adapted model."""
        raise NotImplementedError

    def programs(self, reader: AdaptedReader, columns: Sequence[str], texts: int) -> Programs:
        model = LowRankAdapted(reader, likelihood=likelihood_of(reader), call=partial(read, columns=tuple(columns)))
        self.guide = self.make_guide(model).to(reader.device)
        objective = make(
            "tempered-elbo",
            num_data=texts,
            temperature=self.kappa * self.budget.temperature,
            warmup_steps=max(1, round(0.2 * self.budget.steps)),
            noise_per_example=True,
        )
        return Programs(model, self.guide, objective, texts)

    def scale_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.guide.parameters() if p.requires_grad]


class Lrvd(OnContract):
    """Rank-wise variational dropout, its KL counted once a rank.

    Args:
        budget: ranks, steps and rates.
        num_data: N.
        family: see ``guides.LrvdConfig``.
        frozen: a value at which log α stays: noise alone, as a control.
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

    def make_guide(self, model: LowRankAdapted) -> AdapterGuide:
        return RankwiseGuide(model, self.family).requires_grad_(self.frozen is None)

    def look(self) -> None:
        self.guide.store()  # type: ignore[operator]

    def drawing(self, draws: int, seed: int) -> Any:
        from guides.adapters.lrvd_layers import sampling

        return sampling(self.model, draws, seed, noise="sequence")

    def log_alpha(self) -> dict[str, Tensor]:
        from guides.adapters.lrvd_layers import rank_log_alpha

        return rank_log_alpha(self.model)


class Ordered(OnContract):
    """Ranks in order of importance by nested dropout, as in Maestro (Horvath et al. 2024): a point estimate.

    After training components may be taken away from the last on, or the smallest first.
    """

    def make_guide(self, model: LowRankAdapted) -> AdapterGuide:
        return NestedDropoutAdapterGuide(model)
