"""The NumPyro twin of a mixture: the same log-joint, and NUTS as the reference that a guide is graded by."""

import pytest
import torch
from pyro import poutine

import evaluation
import inference
from guides import ConjugateRefinement, DirichletMixtureGuide
from inference.reference.numpyro_mixture import mixture_twin
from pp_models import Dataset, MixtureDensityNetwork
from tests.twin_log_joint import twin_log_joint

HEADS = {"gaussian-head": 2, "student-t-head": 2, "bernoulli": 2, "categorical": 3}


def pair(likelihood="gaussian-head", dtype=torch.float64, batch=(2,)):
    torch.manual_seed(0)
    model = MixtureDensityNetwork(3, 1, HEADS[likelihood], "strict", likelihood=likelihood, width=4, concentration=0.7)
    x = torch.randn(*batch, 6, 1, dtype=dtype)
    y = torch.randn(*batch, 6, 2, dtype=dtype)
    if likelihood == "bernoulli":
        y = (y > 0).to(dtype)
    if likelihood == "categorical":
        y = torch.randint(3, (*batch, 6))
    return model.to(dtype), Dataset(x, y, torch.rand(*batch, 6) > 0.3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("likelihood", HEADS)
def test_the_log_joint_is_the_same(likelihood, dtype, tolerance):
    model, data = pair(likelihood, dtype)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.05, 0.05]], dtype=torch.float64)
    conditioned = poutine.condition(model, data={"mixture_weights": weights})
    ours = poutine.trace(conditioned).get_trace(data).log_prob_sum().item()
    theirs = twin_log_joint(model, mixture_twin(model), data, {"mixture_weights": weights.to(dtype)})
    assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance * 10)


def test_nuts_grades_guides_of_the_mixture():
    """A guide refined by the data is nearer the sampler's posterior than one that has never been trained."""
    torch.manual_seed(1)
    model = MixtureDensityNetwork(3, 1, 1, "strict", width=8, min_scale=0.2)
    z = torch.tensor([0.7, 0.2, 0.1])
    x = torch.rand(1, 60, 1) * 4 - 2
    with torch.no_grad():
        experts = model.expert_distribution(x)
        which = torch.multinomial(z.expand(60, 3), 1).reshape(1, 60, 1, 1)
        y = experts.sample().gather(-2, which).squeeze(-2)
    data = Dataset(x, y)
    reference = inference.nuts(model, data, 200, 300, seed=0)
    assert reference.draws["mixture_weights"].shape == (300, 1, 3)
    guide = DirichletMixtureGuide(model, 8)
    plain = evaluation.grade(model, guide, data, reference, num_samples=500).table.iloc[0]
    refined = evaluation.grade(model, ConjugateRefinement(model, guide), data, reference, num_samples=500).table.iloc[0]
    assert plain.wasserstein > 2 * refined.wasserstein
    assert refined.mean_error < 0.5


def test_refusals():
    with pytest.raises(ValueError, match=r"^model: its experts read a memory that a guide supplies"):
        mixture_twin(MixtureDensityNetwork(3, 1, 1, "context"))
    model, data = pair()
    with pytest.raises(ValueError, match=r"^data: y is None"):
        inference.nuts(model, data.without_y(), 2, 2)
