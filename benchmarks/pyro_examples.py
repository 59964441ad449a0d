"""Pyro's examples and tutorials in miniature, in our own words: model, guide and rows of data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.distributions.constraints import positive
from pyro.infer import autoguide, config_enumerate
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn


@dataclass
class Example:
    """One of Pyro's examples.

    Args:
        model: called with ``data``.
        guide: likewise.
        data: rows along the last batch dimension that the model splits.
        rows: takes some rows of the data; None where the rows share a latent.
    """

    model: Callable
    guide: Callable
    data: tuple[Any, ...]
    rows: Callable[[tuple[Any, ...], slice], tuple[Any, ...]] | None = None


def by_row(data: tuple[Any, ...], kept: slice) -> tuple[Any, ...]:
    return tuple(part[kept] for part in data)


def net(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first, second in itertools.pairwise(widths):
        layers += [nn.Linear(first, second), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def pixels(rows: int, width: int = 6) -> Tensor:
    return torch.bernoulli(torch.full((rows, width), 0.4))


def normal(both: Tensor, width: int) -> dist.TorchDistribution:
    return dist.Normal(both[..., :width], (0.5 * both[..., width:]).exp()).to_event(1)


def vae() -> Example:
    encoder, decoder = net(6, 5, 4), net(2, 5, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", normal(encoder(x), 2))

    return Example(model, guide, (pixels(5),), by_row)


def cvae() -> Example:
    """A prior and a recognition network that both see the input, and a plate without a size."""
    prior, recognition, decoder = net(6, 4), net(12, 4), net(8, 6)

    def model(x, y):
        pyro.module("generation", nn.ModuleList([prior, decoder]))
        with pyro.plate("data"):
            z = pyro.sample("z", normal(prior(x), 2))
            pyro.sample("y", dist.Bernoulli(logits=decoder(torch.cat([z, x.expand(*z.shape[:-1], 6)], -1))).to_event(1),
                        obs=y)  # fmt: skip

    def guide(x, y):
        pyro.module("recognition", recognition)
        with pyro.plate("data"):
            pyro.sample("z", normal(recognition(torch.cat([x, y], -1)), 2))

    return Example(model, guide, (pixels(5), pixels(5)), by_row)


def ss_vae() -> Example:
    classifier, encoder, decoder = net(6, 3), net(9, 4), net(5, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3))
            pyro.sample("x", dist.Bernoulli(logits=decoder(torch.cat([z, y], -1))).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoders", nn.ModuleList([classifier, encoder]))
        with pyro.plate("data"):
            y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            both = encoder(torch.cat([x.expand(*y.shape[:-1], 6), y], -1))
            pyro.sample("z", normal(both, 2))

    return Example(model, guide, (pixels(4),), by_row)


def cevae() -> Example:
    """Treatment and outcome are observed in the guide too, as auxiliary sites."""
    to_t, to_y, encoder = net(6, 1), net(7, 1), net(8, 4)
    p_x, p_t, p_y = net(2, 6), net(2, 1), net(3, 1)

    def model(x, t, y):
        pyro.module("generation", nn.ModuleList([p_x, p_t, p_y]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=p_x(z)).to_event(1), obs=x)
            pyro.sample("t", dist.Normal(p_t(z).squeeze(-1), 1.0), obs=t)
            treated = torch.cat([z, t.expand(z.shape[:-1]).unsqueeze(-1)], -1)
            pyro.sample("y", dist.Normal(p_y(treated).squeeze(-1), 1.0), obs=y)

    def guide(x, t, y):
        pyro.module("recognition", nn.ModuleList([to_t, to_y, encoder]))
        with pyro.plate("data", len(x)):
            auxiliary = {"is_auxiliary": True}
            pyro.sample("t_given_x", dist.Normal(to_t(x).squeeze(-1), 1.0), obs=t, infer=auxiliary)
            xt = torch.cat([x, t.unsqueeze(-1)], -1)
            pyro.sample("y_given_x", dist.Normal(to_y(xt).squeeze(-1), 1.0), obs=y, infer=auxiliary)
            pyro.sample("z", normal(encoder(torch.cat([xt, y.unsqueeze(-1)], -1)), 2))

    return Example(model, guide, (pixels(5), torch.randn(5), torch.randn(5)), by_row)


def scanvi() -> Example:
    """Two layers, drawn bottom up by the guide, and a classification loss as a factor of the guide."""
    lower, upper, classifier, decode_1, decode_2 = net(6, 4), net(5, 4), net(2, 3), net(5, 4), net(2, 6)

    def label(y):
        return nn.functional.one_hot(y, 3).float()

    def model(x, y):
        pyro.module("generation", nn.ModuleList([decode_1, decode_2]))
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            known = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)), obs=label(y))
            z2 = pyro.sample("z2", normal(decode_1(torch.cat([z1, known.expand(*z1.shape[:-1], 3)], -1)), 2))
            pyro.sample("x", dist.Bernoulli(logits=decode_2(z2)).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("recognition", nn.ModuleList([lower, upper, classifier]))
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(lower(x), 2))
            loss = -dist.OneHotCategorical(logits=classifier(z2)).log_prob(label(y))
            pyro.factor("classification_loss", -3.0 * loss, has_rsample=True)
            pyro.sample("z1", normal(upper(torch.cat([z2, label(y).expand(*z2.shape[:-1], 3)], -1)), 2))

    return Example(model, guide, (pixels(4), torch.tensor([0, 2, 1, 1])), by_row)


def dmm() -> Example:
    """Sequences of unequal length: padded steps are masked."""
    transition, emission, combiner = net(2, 4), net(2, 4), net(6, 4)

    def model(x, lengths):
        pyro.module("dmm", nn.ModuleList([transition, emission]))
        with pyro.plate("sequences", len(x)):
            z = torch.zeros(len(x), 2)
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", normal(transition(z), 2))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=emission(z)).to_event(1), obs=x[:, t])

    def guide(x, lengths):
        pyro.module("combiner", combiner)
        with pyro.plate("sequences", len(x)):
            z = torch.zeros(len(x), 2)
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=t < lengths):
                    seen = x[:, t].expand(*z.shape[:-1], 4)
                    z = pyro.sample(f"z_{t}", normal(combiner(torch.cat([z, seen], -1)), 2))

    x = torch.bernoulli(torch.full((4, 3, 4), 0.5))
    return Example(model, guide, (x, torch.tensor([3, 2, 1, 3])), by_row)


def sparse_gamma() -> Example:
    def model(x):
        with pyro.plate("features", 3, dim=-1), pyro.plate("top", 2, dim=-2):
            w = pyro.sample("w", dist.Gamma(0.8, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(torch.tensor([1.0, 1.5]), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((z.unsqueeze(-2) @ w).squeeze(-2)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("features", 3, dim=-1), pyro.plate("top", 2, dim=-2):
            pyro.sample("w", dist.Gamma(pyro.param("w_shape", torch.full((2, 3), 1.5), constraint=positive), 1.5))
        with pyro.plate("data", len(x), dim=-1):
            shape = pyro.param("z_shape", torch.full((len(x), 2), 2.0), constraint=positive)
            pyro.sample("z", dist.Gamma(shape, 1.5).to_event(1))

    return Example(model, guide, (torch.tensor([[1.0, 0, 2], [3, 1, 0]]),))


def baseball() -> Example:
    def model(at_bats, hits):
        mean = pyro.sample("mean", dist.Uniform(0.0, 1.0))
        concentration = pyro.sample("concentration", dist.LogNormal(2.0, 0.5))
        with pyro.plate("players", len(hits)):
            skill = pyro.sample("skill", dist.Beta(mean * concentration, (1 - mean) * concentration))
            pyro.sample("hits", dist.Binomial(at_bats, skill), obs=hits)

    guide = autoguide.AutoDiagonalNormal(model, init_scale=0.3)
    return Example(model, guide, (torch.tensor(45.0), torch.tensor([18.0, 12.0, 9.0, 14.0])))


def eight_schools() -> Example:
    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    guide = autoguide.AutoNormal(model, init_scale=0.3)
    effects = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    return Example(model, guide, (effects, torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])))


def lda() -> Example:
    def model(words):
        with pyro.plate("topics", 2):
            table = pyro.sample("table", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("documents", words.shape[-1]):
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", words.shape[0], dim=-2):
                pyro.sample("word", dist.Categorical(weights @ table), obs=words)

    def guide(words):
        with pyro.plate("topics", 2):
            pyro.sample("table", dist.Dirichlet(pyro.param("a", 1 + torch.rand(2, 4), constraint=positive)))
        with pyro.plate("documents", words.shape[-1]):
            pyro.sample("weights", dist.Dirichlet(pyro.param("b", 1 + torch.rand(3, 2), constraint=positive)))

    return Example(model, guide, (torch.randint(0, 4, (5, 3)),))


def hmm() -> Example:
    """Discrete states that the model enumerates, as in the examples on hidden Markov models."""

    @config_enumerate
    def model(y):
        probabilities = pyro.sample("probabilities", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        state = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"state_{t}", dist.Categorical(probabilities[..., state, :]))
            pyro.sample(f"y_{t}", dist.Normal(state.float(), 1.0), obs=y[t])

    guide = autoguide.AutoNormal(poutine.block(model, expose=["probabilities"]))
    return Example(model, guide, (torch.tensor([0.2, 1.1, 0.9]),))


def air() -> Example:
    """Objects that are there or not, one after another; what is not there is masked."""
    presence, where, decoder = net(6, 2), net(6, 4), net(1, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            on, canvas = torch.ones(len(x)), torch.zeros(len(x), 6)
            for t in range(2):
                on = pyro.sample(f"on_{t}", dist.Bernoulli(0.6 * on))
                with poutine.mask(mask=on.bool()):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                canvas = canvas + on.unsqueeze(-1) * decoder(z.unsqueeze(-1))
            pyro.sample("x", dist.Normal(canvas, 0.8).to_event(1), obs=x)

    def guide(x):
        pyro.module("recognition", nn.ModuleList([presence, where]))
        with pyro.plate("images", len(x)):
            on, logits, at = torch.ones(len(x)), presence(x), where(x)
            for t in range(2):
                on = pyro.sample(f"on_{t}", dist.Bernoulli(logits[..., t].sigmoid() * on))
                with poutine.mask(mask=on.bool()):
                    pyro.sample(f"z_{t}", dist.Normal(at[..., 2 * t], (0.5 * at[..., 2 * t + 1]).exp()))

    return Example(model, guide, (torch.randn(3, 6),), by_row)


def regression() -> Example:
    """Bayesian regression as a PyroModule, as in the first tutorial on it."""

    class Linear(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 3.0).expand([1]).to_event(1))

        def forward(self, x, y):
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 3.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)

    model = Linear()
    return Example(model, autoguide.AutoDiagonalNormal(model, init_scale=0.3), (torch.randn(6, 2), torch.randn(6)))


def gaussian_process() -> Example:
    inputs, outputs = torch.linspace(0, 1, 5), torch.randn(5)
    kernel = gp.kernels.RBF(input_dim=1, lengthscale=torch.tensor(0.5))
    process = gp.models.GPRegression(inputs, outputs, kernel, noise=torch.tensor(0.5))
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 0.5))
    kernel.autoguide("lengthscale", dist.Normal)
    return Example(process.model, process.guide, ())


EXAMPLES: dict[str, Callable[[], Example]] = {
    make.__name__: make
    for make in (
        vae, cvae, ss_vae, cevae, scanvi, dmm, sparse_gamma, baseball, eight_schools, lda, hmm, air, regression,
        gaussian_process,
    )
}  # fmt: skip
