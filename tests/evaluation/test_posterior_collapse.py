"""Posterior collapse: planted passive and mixed coordinates, and the exact condition of a linear model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guidebook as gb
from evaluation.posterior_collapse import active_in_linear_model, collapse

Y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def model(y):
    with pyro.plate("images", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def guide(y):
    """The first coordinate is inferred, the second stays at its prior, the third does so for half of the images."""
    half = (torch.arange(len(y)) % 2).bool()
    loc = torch.stack([y[:, 0], torch.zeros(len(y)), torch.where(half, y[:, 2], 0.0)], -1)
    scale = torch.stack([torch.full((len(y),), 0.9), torch.full((len(y),), 2.0), torch.where(half, 0.5, 2.0)], -1)
    with pyro.plate("images", len(y)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def test_planted_states_are_found():
    table = collapse(model, guide, Y, num_samples=400)
    assert table["state"].tolist() == ["active", "passive", "mixed"]
    assert table["width"][1] == pytest.approx(1.0, abs=0.1) and table["passive_share"][2] == pytest.approx(0.5, abs=0.1)


def test_a_site_in_no_plate_and_the_librarys_models():
    def line(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x * w[0], 0.1).to_event(1), obs=y)

    def posterior(x, y):
        pyro.sample("w", dist.Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.05, 1.0])).to_event(1))

    table = collapse(line, posterior, torch.ones(5), torch.ones(5), num_samples=1_000)
    assert table["state"].tolist() == ["active", "passive"] and table["moved"].isna().all()
    network = gb.BayesianNetwork([1, 2, 1], noise_scale=0.3)
    mean_field = gb.guides.AmortisedMeanFieldGuide(network, 8)
    table = gb.collapse(network, mean_field, gb.Dataset(torch.randn(6, 4, 1), torch.randn(6, 4, 1)), num_samples=50)
    assert set(table["site"]) == {"layer_0.weight", "layer_1.weight"} and len(table) == 7


class Linear(nn.Module):
    """A linear model of two-dimensional latents, and its best Gaussian guide, trained together."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.decoder = nn.Parameter(0.1 * torch.randn(4, 2, dtype=torch.float64))
        self.encoder = nn.Parameter(0.1 * torch.randn(2, 4, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(self, y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ self.decoder.mT, self.noise).to_event(1), obs=y)

    def guide(self, y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y @ self.encoder.mT, self.log_scale.exp()).to_event(1))

    def loss(self, y):
        loc, variance = y @ self.encoder.mT, (2 * self.log_scale).exp()
        missed = (y - loc @ self.decoder.mT).square().sum(-1) + (self.decoder.square() @ variance).sum()
        kl = 0.5 * (variance + loc.square() - 1 - variance.log()).sum(-1)
        return (missed / (2 * self.noise**2) + kl).mean()


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_a_trained_linear_model_keeps_what_the_exact_condition_says(noise):
    torch.manual_seed(1)
    directions = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    y = torch.randn(400, 4, dtype=torch.float64) * torch.tensor([2.0, 0.7, 0.1, 0.1]).double() @ directions
    y = y - y.mean(0)
    linear = Linear(noise)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.02)
    for _ in range(1_200):
        optimizer.zero_grad()
        linear.loss(y).backward()
        optimizer.step()
    kept = active_in_linear_model(y.mT @ y / len(y), noise)
    assert kept == {0.3: 2, 1.0: 1, 3.0: 0}[noise]
    table = collapse(linear.model, linear.guide, y, num_samples=200)
    assert int((table["state"] != "passive").sum()) == kept


def test_a_verdict_of_any_model_says_what_collapsed():
    verdict = gb.verdict(model, guide, Y, num_samples=200, nuts_seconds=0)
    (finding,) = [f for f in verdict.findings if f.name == "collapse"]
    assert finding.measured.startswith("1 of 3 coordinates passive, 1 mixed") and not finding.weighs


def test_a_model_without_latents_is_refused():
    with pytest.raises(ValueError, match=r"^model: it has no latent site"):
        collapse(lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)), lambda: None)
