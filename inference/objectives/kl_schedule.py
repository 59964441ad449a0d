"""How the KL of an objective grows while training, and when draws are means: against latents that collapse."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from inference.objectives.independent_plates import is_point_mass
from pp_models.arguments import NOT_NEGATIVE, SHARE, checked, integer, one_of

KINDS = ("none", "warm-up", "cyclical")


class KLSchedule(nn.Module):
    """Weighs an objective's KL by β(t), t the number of losses with gradients so far; from ``steps`` on it is 1.

    * ``"warm-up"``: β = (t + 1) / steps (Sønderby et al. 2016);
    * ``"cyclical"``: ``cycles`` times from 1 / steps of a cycle to 1 over a share of it, then 1 (Fu et al. 2019).

    Until then, too, ``free_bits`` λ counts a site's KL as λ nats a task where its mean over particles and tasks is less
    (Kingma et al. 2016), and with ``noise`` the guide's draws are its means: ``"late"`` before ``noise_steps``,
    ``"early"`` after it (Liu et al. 2023, early and late dropout). Once the schedule has ended (and ``"early"`` is not
    asked for) the objective is what it is without, bit for bit.

    Args:
        kind: ``"warm-up"``, ``"cyclical"`` or ``"none"``.
        steps: losses with gradients over which it acts.
        cycles: of ``"cyclical"``.
        rising: share of a cycle over which β grows.
        free_bits: λ, in nats; 0 for none.
        noise: ``"always"``, ``"late"`` or ``"early"``.
        noise_steps: when that changes; None for ``steps``.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> objective = make("elbo", kl_schedule=KLSchedule("warm-up", steps=1_000, free_bits=0.5))
    """

    losses: Tensor

    @checked(
        kind=one_of(*KINDS), steps=integer(1), cycles=integer(1), rising=SHARE, free_bits=NOT_NEGATIVE,
        noise=one_of("always", "late", "early"), noise_steps=integer(0),
    )  # fmt: skip
    def __init__(
        self,
        kind: str = "warm-up",
        steps: int = 1_000,
        *,
        cycles: int = 4,
        rising: float = 0.5,
        free_bits: float = 0.0,
        noise: str = "always",
        noise_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.steps, self.cycles, self.rising, self.free_bits = kind, steps, cycles, rising, free_bits
        self.noise, self.noise_steps = noise, steps if noise_steps is None else noise_steps
        self.register_buffer("losses", torch.zeros(()))

    @classmethod
    def parse(cls, text: str, steps: int = 1_000) -> KLSchedule:
        """A schedule from one word, as the command line takes it.

        Parts are joined by ``+``: ``warm-up[:STEPS]`` or ``cyclical[:STEPS[:CYCLES]]``, ``free-bits:NATS``, and
        ``late:STEPS`` or ``early:STEPS`` for the noise.

        Args:
            text: the parts.
            steps: of a schedule that names none.

        Raises:
            ValueError: a part of another form, or two of one kind.

        Example:
            >>> KLSchedule.parse("cyclical:4000:4+free-bits:0.1").cycles
            4
        """
        found: dict[str, Any] = {"kind": "none", "steps": steps}
        seen = []
        try:
            for part in text.split("+"):
                name, *values = part.split(":")
                if name in ("warm-up", "cyclical") and len(values) <= (1 if name == "warm-up" else 2):
                    found |= {"kind": name, **dict(zip(("steps", "cycles"), map(int, values), strict=False))}
                elif name == "free-bits" and len(values) == 1:
                    found["free_bits"] = float(values[0])
                elif name in ("late", "early") and len(values) == 1:
                    found |= {"noise": name, "noise_steps": int(values[0])}
                else:
                    raise ValueError
                seen.append("kind" if name in KINDS else "noise" if name in ("late", "early") else name)
            if len(set(seen)) < len(seen):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"kl_schedule: got {text!r}; it must be parts such as warm-up:1000, cyclical:1000:4, free-bits:0.1 or "
                "late:500, one of a kind, joined by +"
            ) from None
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"kl_schedule: got {text!r}, of which {error}") from None

    def advance(self) -> None:
        """Counts a loss with gradients."""
        if torch.is_grad_enabled():
            self.losses += 1

    def _time(self) -> Tensor:
        return (self.losses - 1).clamp_min(0)

    def beta(self) -> Tensor:
        """β of the newest loss, a scalar on the buffer's device."""
        one = torch.ones_like(self.losses)
        if self.kind == "none":
            return one
        time = self._time()
        length = self.steps / (1 if self.kind == "warm-up" else self.cycles)
        rise = max(length * (1.0 if self.kind == "warm-up" else self.rising), 1.0)
        growing = ((torch.remainder(time, length) + 1) / rise).clamp_max(1.0)
        return torch.where(time < self.steps - 1, growing, one)

    def counted(self, kl: Tensor) -> Tensor:
        """A site's KL ``[K, *B]``, no lower than the free nats."""
        if not self.free_bits:
            return kl
        above = (kl.mean() > self.free_bits) | (self._time() >= self.steps)
        return torch.where(above, kl, torch.full_like(kl, self.free_bits))

    def drawn(self) -> Messenger | None:
        """What puts a guide's means in the place of its draws while the schedule says so; None where it never does."""
        if self.noise == "always":
            return None
        before = self._time() < self.noise_steps
        return _Means(before if self.noise == "late" else ~before)


class _Means(Messenger):
    """Replaces draws by their distributions' means, where ``wanted`` says so, with the same random numbers."""

    def __init__(self, wanted: Tensor) -> None:
        super().__init__()
        self.wanted = wanted
        self._given: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"]:  # replayed, or data
            self._given.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["name"] in self._given or type(fn).__name__ == "_Subsample" or is_point_mass(fn):
            return
        try:
            mean = fn.mean
        except NotImplementedError:
            raise ValueError(
                f"kl_schedule: site {msg['name']!r} has no mean ({type(fn).__name__}) to put in place of its draw; "
                "noise must be 'always'"
            ) from None
        msg["value"] = torch.where(self.wanted, mean.expand(msg["value"].shape).to(msg["value"].dtype), msg["value"])
