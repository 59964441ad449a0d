"""The evidence lower bound with a KL that weighs more or less, warms up, and stands for all data of a minibatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from inference.objectives.elbo import TaskELBO
from inference.objectives.task_objective import BoundTerms, context_and_full
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.per_example_noise import per_example_noise
from pp_models.adapters.tempering import Tempering
from pp_models.arguments import checked, integer
from pp_models.contract import as_guide


class TemperedELBO(TaskELBO):
    """(N / n) E_q[log p(y | z)] - κ β(t) KL(q ‖ p): the bound on N data from a minibatch of n, its KL tempered.

    With κ = β = 1 and every step on all data it is :class:`TaskELBO`. κ < 1 is a cold posterior; LRVD's runs take κ
    from 1 to 600 (docs/papers/lrvd.md). Everything latent is weighed by κ β(t), where a guide over adapters says how
    often the KL of each of its sites counts (``kl_counts``), everything observed by N / n.

    Args:
        num_particles: draws K.
        temperature: T.
        kl_count: ``"rank"`` or ``"weights"``, for guides over adapters.
        kl_weight: ``"elbo"``, or a number w: a mean log-likelihood less w KL, κ = T w N.
        warmup_steps: losses with gradients over which β grows linearly to 1; their count is saved with a fit.
        num_data: N, number of training points, where a step sees only some of them; masked points do not count.
        noise_per_example: draw what a guide over adapters makes random once for every row instead of once a batch
            (:class:`pp_models.adapters.per_example_noise.per_example_noise`): the same bound, as a rule with less
            noise in its gradient. There are then no importance weights to judge the guide by.
        **options: see :class:`TaskELBO`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> objective = TemperedELBO(num_data=1000, temperature=3.0, warmup_steps=200)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    """

    name = "tempered-elbo"
    description = "the bound with a tempered, warmed-up KL and minibatches of the data"
    reference = "LRVD; Wenzel et al. 2020"

    @checked(warmup_steps=integer(0), num_data=integer(1))
    def __init__(
        self,
        num_particles: int = 1,
        *,
        temperature: float = 1.0,
        kl_count: str = "rank",
        kl_weight: str | float = "elbo",
        warmup_steps: int = 0,
        num_data: int | None = None,
        noise_per_example: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        for name, must in (("kl_reduction", "sum"), ("estimator", "pathwise")):
            if noise_per_example and getattr(self, name) != must:
                raise ValueError(
                    f"noise_per_example: got True with {name} = {getattr(self, name)!r}; it must be {must!r}"
                )
        self.noise_per_example = noise_per_example
        self.coherent_draws = not noise_per_example
        self.tempering = Tempering(num_data, kl_count, kl_weight, temperature, warmup_steps)
        if warmup_steps and self.kl_schedule is not None:
            raise ValueError(f"warmup_steps: got {warmup_steps} beside kl_schedule; take one of them")
        self._warmup = WarmUp() if warmup_steps else None
        if self._warmup is not None:
            self.module = self._warmup

    def warmed_up(self) -> float | Tensor:
        """β(t) of the newest loss."""
        return 1.0 if self._warmup is None else self.tempering.beta(self._warmup.losses - 1)

    def terms(self, model: Any, guide: Any, *args: Any, diagnostics: bool = False, **kwargs: Any) -> BoundTerms:
        if isinstance(model, LowRankAdapted) and model.tempering is not None:
            raise ValueError(
                "model: its KL is weighed already, by arguments of LowRankAdapted; give them to this objective alone"
            )
        if self._warmup is not None and torch.is_grad_enabled():
            self._warmup.losses += 1
        return super().terms(model, guide, *args, diagnostics=diagnostics, **kwargs)

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> Any:
        counts = as_guide(guide).kl_counts(self.tempering.kl_count)
        share = self._share(args)
        with _Weighed(self.tempering.kappa(), self.warmed_up(), counts, share):
            draws = super().draw(model, guide, args, kwargs, particles, diagnostics)
        draws.points = draws.points * share  # the likelihood stands for all N, and so does what it is divided by
        return draws

    @contextmanager
    def _handlers(self, model: Any, particles: AbstractContextManager, args: tuple) -> Iterator[None]:
        with super()._handlers(model, particles, args), ExitStack() as stack:
            if self.noise_per_example:
                if not isinstance(model, LowRankAdapted):
                    raise ValueError(
                        f"noise_per_example: got True with a model of type {type(model).__name__}; it is for a "
                        "LowRankAdapted"
                    )
                _, full = context_and_full(args[0] if args else None)
                stack.enter_context(per_example_noise(full.x.shape[:-1].numel()))
            yield

    def _share(self, args: tuple) -> float | Tensor:
        """N / n of the data scored."""
        if self.tempering.num_data is None:
            return 1.0
        context, full = context_and_full(args[0] if args else None)
        data = full if self.on == "full" else context
        return self.tempering.num_data / data.counts.sum().clamp_min(1)


class WarmUp(nn.Module):
    """How many losses with gradients there were."""

    losses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(()))


class _Weighed(Messenger):
    """Scales latent sites by κ β(t) times their counts, and observed ones by N / n."""

    def __init__(self, kappa: float, beta: float | Tensor, counts: Mapping[str, float], share: float | Tensor) -> None:
        super().__init__()
        self.kappa, self.beta, self.counts, self.share = kappa, beta, counts, share
        # sites weighed alike share a tensor, so that they are known to be without a look at its value
        self._made: dict[tuple[float, float], float | Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.share
        else:
            msg["scale"] = self._weight(msg["scale"], self.counts.get(msg["name"], 1.0))

    def _weight(self, scale: float | Tensor, count: float) -> float | Tensor:
        if isinstance(scale, Tensor):
            return scale * (self.kappa * count) * self.beta
        if (scale, count) not in self._made:
            self._made[scale, count] = scale * (self.kappa * count) * self.beta
        return self._made[scale, count]
