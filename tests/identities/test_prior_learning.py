"""Where the guide is exact, a learned prior becomes the distribution that the tasks' weights were drawn from."""

import pytest
import torch

from guides import BNNWeightGuide
from inference import fit
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior, TaskBatch

MEAN = torch.tensor([[1.5, -0.5]])
COVARIANCE = torch.tensor([[[0.25, -0.1], [-0.1, 0.16]]])
NOISE = 0.3


def line_tasks(steps, tasks=64):
    """Lines y = w x + b + noise with (w, b) from the Gaussian above; four context and six target points."""
    generator = torch.Generator().manual_seed(0)
    lower = torch.linalg.cholesky(COVARIANCE)
    for _ in range(steps):
        weight = MEAN + (lower @ torch.randn(tasks, 1, 2, 1, generator=generator)).squeeze(-1)
        x = torch.rand(tasks, 10, 1, generator=generator) * 4 - 2
        y = x * weight[..., :1] + weight[..., 1:] + NOISE * torch.randn(tasks, 10, 1, generator=generator)
        yield TaskBatch(Dataset(x[:, :4], y[:, :4]), Dataset(x[:, 4:], y[:, 4:]))


def learned(objective, granularity="unit", steps=500, **options):
    """How far the learned prior's mean and covariance are from the true ones, after training and before."""
    torch.manual_seed(0)
    model = BayesianNetwork([1, 1], prior=LearnedGaussianPrior(granularity), noise_scale=NOISE)
    guide = BNNWeightGuide(model, final_targets="real", final_noise="real")

    def distance():
        blocks = model.prior.gaussian(0, [])
        factor = torch.diag_embed(blocks.factor) if blocks.diagonal else blocks.factor
        moments = blocks.loc.detach(), (factor @ factor.mT).detach()
        return [
            float((a.flatten() - b.flatten()).abs().max()) for a, b in zip(moments, (MEAN, COVARIANCE), strict=True)
        ]

    before = distance()
    objective = make(objective, num_particles=8, **options)
    fit(model, guide, line_tasks(steps), objective, steps, learning_rate=3e-2, final_learning_rate=1e-3, device="cpu",
        progress=False)  # fmt: skip
    return distance(), before


@pytest.mark.parametrize(
    ("objective", "options"), [("elbo", {"on": "full"}), ("elbo", {"on": "context"}), ("pp-avi", {})]
)
def test_evidence_bounds_recover_the_prior_of_the_tasks(objective, options):
    (mean, covariance), before = learned(objective, **options)
    assert before[0] > 1.0 and before[1] > 0.2
    assert mean < 0.06 and covariance < 0.06


def test_a_coarser_prior_recovers_it_too():
    mean, covariance = learned("elbo", "network", on="full")[0]
    assert mean < 0.06 and covariance < 0.06


def test_without_the_kl_it_is_not_recovered():
    """Then nothing ties the prior to the weights: only what fits each task's points counts."""
    assert learned("elbo", on="full", beta=0.0)[0][1] > 0.15
