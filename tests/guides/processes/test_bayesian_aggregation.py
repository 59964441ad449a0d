"""Bayesian context aggregation: every point an observation of the latent, pooled as a posterior."""

import pytest
import torch
from torch import nn

from guides import NeuralProcessGuide
from guides.processes.neural_process_guide import WEAK
from inference import fit
from inference.objectives import make
from pp_models import Dataset, ImplicitRepresentation, NeuralProcess, tasks

NOISE = 0.7


class Known(nn.Module):
    """What an encoder would say of y_n = z + ε: the observation itself, and its precision."""

    def forward(self, data):
        raw = torch.log(torch.expm1(torch.full_like(data.y, NOISE**-2)))
        return torch.cat([data.y, raw - WEAK], -1)


def guide_of(latent=1, width=8):
    model = NeuralProcess(1, 1, latent_dim=latent, width=width, depth=3).double()
    return model, NeuralProcessGuide(model, width, pooling="bayesian").double()


def points(*batch, n=5, mask=None):
    return Dataset(torch.randn(*batch, n, 1).double(), torch.randn(*batch, n, 1).double(), mask)


def moments(guide, data):
    found = guide.latent(data)
    return found.mean, found.variance


def test_of_a_gaussian_observed_in_noise_it_is_the_exact_posterior():
    _, guide = guide_of()
    guide.latent_points = Known()
    mask = torch.rand(3, 6) < 0.7
    data = points(3, n=6, mask=mask)
    mean, variance = moments(guide, data)
    for t in range(3):
        y = data.y[t][mask[t]]
        joint = torch.ones(len(y) + 1, len(y) + 1).double() + NOISE**2 * torch.eye(len(y) + 1).double()
        joint[0, 0] = 1.0  # of z itself; dense algebra of the joint Gaussian of z and y
        gain = torch.linalg.solve(joint[1:, 1:], joint[1:, 0])
        torch.testing.assert_close(mean[t, 0], gain @ y[:, 0])
        torch.testing.assert_close(variance[t, 0], 1 - gain @ joint[1:, 0])


def test_points_in_parts_are_points_together_and_none_are_the_prior():
    _, guide = guide_of(3)
    one, two = points(2), points(2, n=4)
    (m1, v1), (m2, v2), (mean, variance) = (moments(guide, d) for d in (one, two, one | two))
    torch.testing.assert_close(1 / variance, 1 / v1 + 1 / v2 - 1)
    torch.testing.assert_close(mean / variance, m1 / v1 + m2 / v2)
    for none in (points(2, n=0), points(2, mask=torch.zeros(2, 5, dtype=torch.bool))):
        mean, variance = moments(guide, none)
        assert bool((mean == 0).all()) and bool((variance == 1).all())
    assert bool((variance >= v1).all())


@pytest.mark.parametrize("cls", [NeuralProcess, ImplicitRepresentation])
def test_it_trains(cls):
    torch.manual_seed(0)
    model = cls(1, 1, latent_dim=4, width=16, depth=3)
    guide = NeuralProcessGuide(model, 16, pooling="bayesian")
    objective = make("npvi", kl_reduction="sum", normalize=True)
    result = fit(
        model, guide, tasks.gp("rbf", 8), objective, steps=60, learning_rate=3e-3, log_every=20, progress=False
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match=r"^pooling: got 'sum'; it must be one of mean, .*bayesian$"):
        NeuralProcessGuide(NeuralProcess(1, 1, latent_dim=1, width=4), 4, pooling="sum")
