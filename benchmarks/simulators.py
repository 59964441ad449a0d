"""Two simulators of simulation-based inference, and how far a FlowGuide trained on what they draw is from the truth.

``python -m benchmarks.simulators`` prints the table of docs/simulation_based_inference.md: the accuracy of a classifier
between draws of a guide and of the reference posterior (C2ST: 0.5 where they are one, 1 where they are apart), beside
sbi's own NPE on the same simulations where that package is installed.
"""

from __future__ import annotations

import argparse
import copy
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import constraints

from guides import FlowGuide
from inference.objectives import NPE, Simulations
from inference.random_state import seeded
from pp_models.parameter_module import mlp

#: epochs without a better bound on held-out simulations after which training ends, and their share
PATIENCE, HELD_OUT = 20, 0.1


class Crescent(dist.TorchDistribution):
    """A half ring of radius 0.1 that is moved: what two moons are seen through.

    Args:
        shift: ``[*B, 2]``.
    """

    arg_constraints = {"shift": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        super().__init__(shift.shape[:-1], shift.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Crescent:
        return Crescent(self.shift.expand(*batch_shape, 2))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.shift + ring(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        point = value - self.shift - torch.tensor([0.25, 0.0])
        radius = point.norm(dim=-1).clamp_min(1e-12)
        density = dist.Normal(0.1, 0.01).log_prob(radius) - math.log(math.pi) - radius.log()
        return torch.where(point[..., 0] > 0, density, -torch.inf)


def ring(shape: torch.Size) -> Tensor:
    """Points ``[*shape, 2]`` of the half ring."""
    angle, radius = (torch.rand(shape) - 0.5) * math.pi, 0.1 + 0.01 * torch.randn(shape)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def two_moons(x: Tensor | None) -> None:
    """theta ``[2]`` uniform on a square, x ``[2]``: two crescents in theta (Greenberg et al. 2019)."""
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(2), 1.0).to_event(1))
    total, gap = theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]
    pyro.sample("x", Crescent(torch.stack([-total.abs(), gap], -1) / math.sqrt(2)), obs=x)


def two_moons_posterior(x: Tensor, count: int) -> Tensor:
    """Exact draws ``[count, 2]``: the ring's point is drawn, theta follows from it up to a sign."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        shift = (x - ring(torch.Size([4 * count]))) * math.sqrt(2)
        total = -shift[:, 0] * (2 * torch.randint(0, 2, (len(shift),)) - 1)
        theta = torch.stack([total - shift[:, 1], total + shift[:, 1]], -1) / 2
        found.append(theta[(theta.abs() < 1).all(-1) & (shift[:, 0] < 0)])
    return torch.cat(found)[:count]


def slcp(x: Tensor | None) -> None:
    """theta ``[5]`` uniform, x ``[4, 2]``: a simple likelihood and a posterior of four modes (Papamakarios et al. "
    "2019)."""
    theta = pyro.sample("theta", dist.Uniform(-3.0 * torch.ones(5), 3.0).to_event(1))
    pyro.sample("x", slcp_likelihood(theta), obs=x)


def slcp_likelihood(theta: Tensor) -> Any:
    """Four draws of a Gaussian in the plane, ``[*B]`` to event ``[4, 2]``."""
    first, second = theta[..., 2].square().clamp_min(1e-3), theta[..., 3].square().clamp_min(1e-3)
    rho = theta[..., 4].tanh()
    rows = [[first, torch.zeros_like(first)], [rho * second, second * (1 - rho.square()).clamp_min(1e-6).sqrt()]]
    factor = torch.stack([torch.stack(row, -1) for row in rows], -2).unsqueeze(-3)
    normal = dist.MultivariateNormal(theta[..., None, :2], scale_tril=factor, validate_args=False)
    return normal.expand([*theta.shape[:-1], 4]).to_event(1)


def slcp_posterior(x: Tensor, count: int, draws: int = 100_000, rounds: int = 10) -> Tensor | None:
    """Draws ``[count, 5]`` by importance resampling, None where fewer count.

    The proposal is first the prior, then the last answer, smoothed.
    The signs of two parameters do not matter: they are drawn at the end.
    """
    box = torch.tensor([[-3.0, 3.0], [-3.0, 3.0], [0.0, 3.0], [0.0, 3.0], [-3.0, 3.0]])
    flat: Any = dist.Uniform(box[:, 0], box[:, 1], validate_args=False).to_event(1)
    proposal, centres = flat, torch.empty(0, 5)
    for turn in range(rounds):
        theta = proposal.sample((draws,))
        inside = ((theta > box[:, 0]) & (theta < box[:, 1])).all(-1)
        log_weight = torch.where(inside, slcp_likelihood(theta).log_prob(x) - proposal.log_prob(theta), -torch.inf)
        log_weight = (log_weight - log_weight.logsumexp(0)).double()
        centres = theta[torch.multinomial(log_weight.exp(), 300, replacement=True)]
        spread = (0.5 * centres.std(0)).clamp_min(0.3 * 0.5**turn)  # the first rounds may find one point alone
        kernels = dist.Normal(torch.cat([centres, flat.sample((30,))]), spread).to_event(1)
        proposal = dist.MixtureSameFamily(dist.Categorical(torch.ones(330)), kernels)
    effective = float((-(2 * log_weight).logsumexp(0)).exp())
    print(f"  reference: {effective:,.0f} effective of {draws:,} draws", flush=True)
    if effective < count:
        return None
    found = theta[torch.multinomial(log_weight.exp(), count, replacement=False)]
    signs = 2.0 * torch.randint(0, 2, (count, 2)) - 1
    return torch.cat([found[:, :2], found[:, 2:4] * signs, found[:, 4:]], -1)


SIMULATORS = {
    "two moons": (two_moons, torch.zeros(2), two_moons_posterior),
    "SLCP": (slcp, torch.zeros(4, 2), slcp_posterior),
}


class Standardised(nn.Module):
    """An MLP on numbers in units of a sample's."""

    def __init__(self, sample: Tensor, width: int) -> None:
        super().__init__()
        self.dims = sample.dim() - 1
        self.register_buffer("mean", sample.flatten(1).mean(0))
        self.register_buffer("scale", sample.flatten(1).std(0))
        self.layers = mlp([self.mean.numel(), width, width, width])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(x.dim() - self.dims)
        return self.layers((flat - self.mean) / self.scale)


def train(model: Any, example: Tensor, known: Simulations, most_epochs: int, seed: int) -> FlowGuide:
    """A FlowGuide trained on simulations until held-out ones no longer gain."""
    torch.manual_seed(seed)
    held = int(HELD_OUT * len(known))
    training, rest = known[held:], known[:held]
    rest.batch_size = held
    encoder = Standardised(training.args[0], 64)
    guide = FlowGuide(model, 64, example=(example,), encoder=encoder, transforms=5, passes=None)
    objective, held_out = NPE(1, simulate=training), NPE(1, simulate=lambda *_: all_of(rest))
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3)
    best, since, state = math.inf, 0, copy.deepcopy(guide.state_dict())
    for _ in range(most_epochs):
        for _ in range(len(training) // training.batch_size):
            optimizer.zero_grad()
            (objective.differentiable_loss(model, guide, example) / training.batch_size).backward()
            nn.utils.clip_grad_norm_(guide.parameters(), 5.0)
            optimizer.step()
        loss = held_out.loss(model, guide, example) / held
        best, since, state = (loss, 0, copy.deepcopy(guide.state_dict())) if loss < best else (best, since + 1, state)
        if since >= PATIENCE:
            break
    guide.load_state_dict(state)
    return guide


def all_of(known: Simulations) -> Any:
    """All simulations as one batch, in order."""
    once = Simulations(known.latents, known.args, len(known))
    _, kwargs, trace = once(None, (), {})
    for name, value in known.latents.items():
        trace.nodes[name]["value"] = value
    return known.args, kwargs, trace


def sbi_draws(known: Simulations, low: float, high: float, xs: Tensor, count: int, seed: int) -> list[Tensor] | None:
    """Draws of sbi's NPE on the same simulations, at its defaults; None where it is not installed."""
    try:
        from sbi.inference import NPE as TheirNPE
        from sbi.utils import BoxUniform
    except ImportError:
        return None
    torch.manual_seed(seed)
    theta = known.latents["theta"]
    prior = BoxUniform(low * torch.ones(theta.shape[1]), high * torch.ones(theta.shape[1]))
    method = TheirNPE(prior, show_progress_bars=False)
    method.append_simulations(theta, known.args[0].flatten(1)).train()
    posterior = method.build_posterior()
    return [posterior.sample((count,), x=x.flatten(), show_progress_bars=False) for x in xs]


def c2st(a: Tensor, b: Tensor) -> float:
    """Accuracy of a classifier between two sets of draws ``[n, D]``, five-fold."""
    both = torch.cat([a, b]).detach().numpy()
    labels = np.r_[np.zeros(len(a)), np.ones(len(b))]
    width = 10 * both.shape[1]
    network = MLPClassifier((width, width), max_iter=300, early_stopping=True, n_iter_no_change=20, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(make_pipeline(StandardScaler(), network), both, labels, cv=folds).mean())


def main(
    simulations: int = 10_000,
    observations: int = 5,
    draws: int = 2_000,
    most_epochs: int = 200,
    seed: int = 0,
    only: str = "",
) -> list[dict[str, Any]]:
    """One row a simulator.

    Args:
        simulations: that guides are trained on.
        observations: data sets whose posteriors are compared.
        draws: of each posterior.
        most_epochs: over the simulations.
        seed: of everything.
        only: a part of the simulators' names.
    """
    rows = []
    for name, (model, example, reference) in SIMULATORS.items():
        if only not in name:
            continue
        known = Simulations.drawn(model, (example,), simulations, batch_size=200, seed=seed)
        with seeded(seed + 1):
            xs = Simulations.drawn(model, (example,), observations, seed=seed + 1).args[0]
            known_truth = [reference(x, draws) for x in xs]
            xs = xs[[i for i, found in enumerate(known_truth) if found is not None]]
            truth = [found for found in known_truth if found is not None]
            guide = train(model, example, known, most_epochs, seed)
            with torch.no_grad():
                ours = [guide(x.expand(draws, *x.shape))["theta"] for x in xs]
            bound = 1.0 if name == "two moons" else 3.0
            theirs = sbi_draws(known, -bound, bound, xs, draws, seed)
            prior = [bound * (2 * torch.rand(draws, t.shape[1]) - 1) for t in truth]
        row = {
            "simulator": name,
            "data sets": f"{len(truth)}",
            "prior": mean_c2st(prior, truth),
            "FlowGuide, npe": mean_c2st(ours, truth),
        }
        if theirs is not None:
            row["sbi, NPE"] = mean_c2st(theirs, truth)
        rows.append(row)
        print(row, flush=True)
    return rows


def mean_c2st(found: list[Tensor], truth: list[Tensor]) -> float:
    """Over data sets."""
    return sum(c2st(a, b) for a, b in zip(found, truth, strict=True)) / len(truth)


def printed(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(v if isinstance(v, str) else f"{v:.2f}" for v in row.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the simulators' names")
    given = parser.parse_args()
    print(printed(main(given.simulations, given.observations, seed=given.seed, only=given.only)))
