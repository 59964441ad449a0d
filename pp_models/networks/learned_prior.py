"""Gaussian weight priors that are meta-learned with the guide."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pp_models.arguments import SEED, SHARE, WIDTH, checked, number, one_of
from pp_models.networks.priors import GRANULARITIES, GaussianPrior

COVARIANCES = ("full", "low-rank", "sparse")
#: standard deviation of the initial low-rank factor: zero would have no gradient
INITIAL_SPREAD = 0.01


class LearnedGaussianPrior(GaussianPrior):
    """A Gaussian prior whose mean and covariance are parameters, meta-learned with the guide.

    Args:
        granularity: what is correlated a priori: ``"weight"`` (nothing), ``"unit"`` (the incoming weights of a unit),
            ``"layer"`` (a layer's weights) or ``"network"`` (everything; a layer is then conditioned on those below).
        scale_by_fan_in: divide the covariance by the fan-in, outside the learned parameters.
        trainable: proportion of the weights whose prior is learned; the rest keeps N(0, I), before the division,
            whatever an optimizer does: between no learned prior and one that overfits few tasks
            (docs/papers/bnnp.md#priors-learned-in-part).
        trainable_from: ``"last"`` counts from the output layer backwards, ``"first"`` from the input. Layers are taken
            whole; in the one where the proportion ends, weights are picked at random.
        seed: seed of that choice, and of the other random choices below.
        covariance: how a block of n correlated weights is held, where there is one:

            - ``"full"``: a Cholesky factor, n (n + 1) / 2 numbers;
            - ``"low-rank"``: D + U Uᵀ with U ``[n, rank]``, n (rank + 1) numbers;
            - ``"sparse"``: a Cholesky factor with a random share ``density`` of the places below its diagonal.

            The last two save parameters, and overfit less with few tasks; a posterior's solve costs the same.
        rank: columns of U.
        density: share of places, in (0, 1].

    All start at N(0, I), before the division (docs/papers/bnnp.md, eq. 2); low-rank ones within 1e-4 rank of it.

    Raises:
        ValueError: an unknown name, or another argument out of range.
    """

    @checked(
        granularity=one_of(*GRANULARITIES),
        trainable=SHARE,
        trainable_from=one_of("last", "first"),
        seed=SEED,
        covariance=one_of(*COVARIANCES),
        rank=WIDTH,
        density=number(0, 1, "(]"),
    )
    def __init__(
        self,
        granularity: str = "weight",
        scale_by_fan_in: bool = True,
        trainable: float = 1.0,
        trainable_from: str = "last",
        seed: int = 0,
        covariance: str = "full",
        rank: int = 2,
        density: float = 0.1,
    ) -> None:
        super().__init__()
        if covariance != "full" and granularity == "weight":
            raise ValueError(f"covariance: got {covariance!r}, but with granularity='weight' nothing is correlated")
        self.granularity = granularity
        self.scale_by_fan_in = scale_by_fan_in
        self.independent_layers = granularity != "network"
        self.trainable, self.trainable_from, self.seed = trainable, trainable_from, seed
        self.covariance, self.rank, self.density = covariance, rank, density

    def build(self, shapes: list[tuple[int, int]]) -> None:
        known = bool(self.shapes)
        super().build(shapes)
        if known:
            return
        blocks: list[tuple[int, ...]] = list(self.shapes)
        if self.granularity in ("layer", "network"):
            counts = [a * b for a, b in self.shapes]
            blocks = [(n,) for n in (counts if self.granularity == "layer" else [sum(counts)])]
        self.loc = nn.ParameterList([nn.Parameter(torch.zeros(block)) for block in blocks])
        self.log_diagonal = nn.ParameterList([nn.Parameter(torch.zeros(block)) for block in blocks])
        generator = torch.Generator().manual_seed(self.seed)
        learned = self._choose(generator)
        if self.granularity == "network":
            learned = [torch.cat([mask.flatten() for mask in learned])]
        for i, (mask, block) in enumerate(zip(learned, blocks, strict=True)):
            self.register_buffer(f"learned_{i}", mask.reshape(block), persistent=False)
        self.lower = nn.ParameterList()
        if self.granularity == "weight":
            return
        for i, block in enumerate(blocks):
            n = block[-1]
            if self.covariance == "full":
                self.lower.append(nn.Parameter(torch.zeros(*block, n)))
            elif self.covariance == "low-rank":
                spread = INITIAL_SPREAD * torch.randn(*block, self.rank, generator=generator)
                self.lower.append(nn.Parameter(spread))
            else:
                places = torch.tril_indices(n, n, -1)
                kept = torch.randperm(places.shape[1], generator=generator)[: math.ceil(self.density * places.shape[1])]
                self.register_buffer(f"places_{i}", places[:, kept.sort().values], persistent=False)
                self.lower.append(nn.Parameter(torch.zeros(*block[:-1], len(kept))))

    def _choose(self, generator: torch.Generator) -> list[Tensor]:
        """Which weights' priors are learned, ``[k_out, k_in + 1]`` layer by layer."""
        counts = [a * b for a, b in self.shapes]
        left = math.floor(self.trainable * sum(counts) + 1e-9)
        masks: dict[int, Tensor] = {}
        order = range(len(counts))
        for i in reversed(order) if self.trainable_from == "last" else order:
            taken = min(left, counts[i])
            mask = torch.zeros(counts[i], dtype=torch.bool)
            mask[torch.randperm(counts[i], generator=generator)[:taken]] = True
            masks[i] = mask.reshape(self.shapes[i])
            left -= taken
        return [masks[i] for i in order]

    def _learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """Parameters where they are learned, zeros elsewhere: neither momentum nor decay moves those."""
        return values if self.trainable == 1.0 else torch.where(mask, values, values.new_zeros(()))

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        mask = getattr(self, f"learned_{index}")
        loc = self._learned(self.loc[index], mask)
        scale = self._learned(self.log_diagonal[index], mask).exp()
        return loc, scale if self.granularity == "weight" else self._scale_tril(index, mask, scale)

    def _scale_tril(self, index: int, mask: Tensor, scale: Tensor) -> Tensor:
        held: Tensor = self.lower[index]
        if self.covariance == "low-rank":
            spread = self._learned(held, mask.unsqueeze(-1))
            # no eigenvalue is below the smallest variance of the diagonal part
            return torch.linalg.cholesky_ex(spread @ spread.mT + torch.diag_embed(scale**2)).L
        pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        if self.covariance == "sparse":
            rows, columns = getattr(self, f"places_{index}")
            dense = held.new_zeros(*held.shape[:-1], scale.shape[-1], scale.shape[-1])
            dense[..., rows, columns] = self._learned(held, pairs[..., rows, columns])
            return dense + torch.diag_embed(scale)
        return self._learned(held, pairs).tril(-1) + torch.diag_embed(scale)
