"""What single guides over networks and processes refuse, and what their options do."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, MCDropoutGuide, NeuralProcessGuide
from inference import predict
from pp_models import BayesianNetwork, Dataset, NeuralProcess
from tests.guides.guide_table import latent_sites, network


def data(*batch, dtype=torch.float64):
    return Dataset(torch.randn(*batch, 6, 1, dtype=dtype), torch.randn(*batch, 6, 1, dtype=dtype))


def dummy_process():
    return NeuralProcess(1, 1, width=8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: BernoulliExpertGuide(dummy_process()),
            r"^model: got NeuralProcess; BernoulliExpertGuide is a guide for a B",
        ),
        (lambda: AmortisedMeanFieldGuide(dummy_process()), r"^model: got NeuralProcess; AmortisedMeanFieldGuide is a "),
        (
            lambda: MCDropoutGuide(torch.nn.Linear(1, 1)),
            r"^model: got Linear; MCDropoutGuide is a guide for a BayesianN",
        ),
        (
            lambda: NeuralProcessGuide(network()),
            r"^model: got BayesianNetwork; NeuralProcessGuide is a guide for a Neur",
        ),
    ],
)
def test_a_model_of_another_kind_is_a_type_error(build, message):
    with pytest.raises(TypeError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BernoulliExpertGuide(network(), clip="no"), r"^clip: got 'no'; it must be 'logit' or 'probability'$"),
        (
            lambda: BernoulliExpertGuide(network(), rates="no"),
            r"^rates: got 'no'; it must be one of product, layer, full, class$",
        ),
        (lambda: BernoulliExpertGuide(network(), pooling="max"), r"^pooling: got 'max'; it must be one of mean, atten"),
        (lambda: BernoulliExpertGuide(network(), width=6, pooling="attention"), r"^dim_out: got 6; .* num_heads, 4$"),
        (
            lambda: BernoulliExpertGuide(network(4), width=8, share_encoder=True),
            r"^share_encoder: .* is 4 .* width 8; ",
        ),
        (lambda: MCDropoutGuide(network(), rate=0.0), r"^rate: got 0.0; it must lie in \(0, 1\)$"),
    ],
)
def test_bad_options_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_guide_needs_observed_points():
    guide = BernoulliExpertGuide(network(), width=8)
    with pytest.raises(ValueError, match=r"^data: y is None; a guide reads observed points$"):
        guide(Dataset(torch.randn(4, 1)))


def test_classes_are_encoded_as_one_of_many():
    model = BayesianNetwork([1, 5, 3], likelihood="categorical")
    guide = BernoulliExpertGuide(model, width=8)
    d = Dataset(torch.randn(2, 6, 1), torch.randint(0, 3, (2, 6)))
    probabilities = predict(model, guide, d, torch.randn(2, 4, 1), weights="mean").mean
    assert probabilities.shape == (2, 4, 3)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4))
    other = predict(model, guide, Dataset(d.x, (d.y + 1) % 3), torch.randn(2, 4, 1), weights="mean").mean
    assert float((other - probabilities).abs().max()) > 1e-6


def test_mc_dropout_has_the_moments_of_its_rate():
    model = network().double()
    guide = MCDropoutGuide(model, rate=0.3).double()
    for i, site in enumerate(latent_sites(guide, data(2)).values()):
        weight, mean, std = guide.weights[i], site["fn"].mean, site["fn"].variance.sqrt()
        torch.testing.assert_close(mean, (0.7 * weight).expand_as(mean), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(std, (math.sqrt(0.21) * weight.abs()).expand_as(std), rtol=1e-4, atol=1e-4)


def test_pyros_automatic_guide_works_on_one_data_set():
    model = BayesianNetwork([1, 4, 1], noise_scale=0.3)
    d = data(dtype=torch.float32)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=4, vectorize_particles=False))
    losses = torch.tensor([svi.step(d) for _ in range(120)])
    assert float(losses[-20:].mean()) < 0.8 * float(losses[:5].mean())
    prediction = predict(model, guide, d, d.x, num_samples=7, seed=0)
    assert prediction.samples.shape == (7, 6, 1)
