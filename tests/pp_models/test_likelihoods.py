"""Likelihoods: densities, floors and ceilings, and what they refuse."""

import math

import pytest
import torch

from pp_models import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DataError,
    GaussianHeadLikelihood,
    GaussianLikelihood,
)
from pp_models.likelihoods import make_likelihood


def test_head_splits_mean_and_scale():
    fn = GaussianHeadLikelihood()(torch.tensor([[1.0, -2.0, 0.0, 30.0]]))
    assert fn.batch_shape == (1,) and fn.event_shape == (2,)
    assert fn.mean.tolist() == [[1.0, -2.0]]
    expected = [0.1 + 0.9 * math.log(2), 0.1 + 0.9 * 30.0]
    assert fn.base_dist.scale[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("floor", [0.02, 0.1, 0.5])
def test_head_has_a_ceiling_set_by_its_floor(floor):
    head = GaussianHeadLikelihood(floor)
    ceiling = -math.log(floor) - 0.5 * math.log(2 * math.pi)
    outputs = torch.randn(10_000, 2) * 20
    scores = head(outputs).log_prob(outputs[:, :1])  # observed exactly at the mean
    assert float(scores.max()) <= ceiling + 1e-5
    assert float(scores.max()) == pytest.approx(ceiling, abs=1e-3)
    if floor == 0.1:
        assert ceiling == pytest.approx(1.3836, abs=5e-5)


def test_shared_noise_is_its_scale_and_is_learned_on_request():
    fixed, learned = GaussianLikelihood(0.25), GaussianLikelihood(0.25, learn_noise=True)
    fn = fixed(torch.zeros(3, 2))
    assert float(fn.log_prob(torch.zeros(3, 2))[0]) == pytest.approx(
        2 * (-math.log(0.25) - 0.5 * math.log(2 * math.pi))
    )
    assert list(fixed.parameters()) == [] and len(list(learned.parameters())) == 1
    learned(torch.zeros(3, 2)).log_prob(torch.ones(3, 2)).sum().backward()
    # d/d log s of -log s - (y/s)²/2, six times
    assert float(learned.raw_noise_scale.grad) == pytest.approx(6 * (1 / 0.25**2 - 1), rel=1e-5)


def test_categorical_scores_class_indices():
    fn = CategoricalLikelihood()(torch.tensor([[0.0, 0.0, math.log(2.0)]]))
    assert fn.batch_shape == (1,) and fn.event_shape == ()
    assert [math.exp(float(fn.log_prob(torch.tensor([c])))) for c in range(3)] == pytest.approx([0.25, 0.25, 0.5])


def test_bernoulli_scores_bits_and_grey_values():
    fn = BernoulliLikelihood()(torch.tensor([[math.log(3.0), 0.0]]))
    assert math.exp(float(fn.log_prob(torch.tensor([[1.0, 0.0]])))) == pytest.approx(0.75 * 0.5)
    grey = float(fn.log_prob(torch.tensor([[0.5, 0.0]])))
    assert grey == pytest.approx(0.5 * math.log(0.75) + 0.5 * math.log(0.25) + math.log(0.5), rel=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "y", "outputs", "message"),
    [
        (CategoricalLikelihood(), torch.zeros(3, 1), 2, r"^y: got dtype torch.float32; CategoricalLikelihood needs"),
        (BernoulliLikelihood(), torch.zeros(3, dtype=torch.long), 1, r"^y: got dtype torch.int64; BernoulliLikelihood"),
        (GaussianHeadLikelihood(), torch.zeros(3, 2), 2, r"^y: got width 2; a network of 2 outputs .* has 1$"),
    ],
)
def test_outputs_that_cannot_be_scored(likelihood, y, outputs, message):
    with pytest.raises(DataError, match=message):
        likelihood.check(y, outputs)


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_class_indices_outside_the_classes_are_refused(y):
    with pytest.raises(DataError, match=r"^y: got class indices from -?\d to \d; with 3 classes they lie in 0..2$"):
        CategoricalLikelihood().check(y, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianLikelihood(0.0), r"^noise_scale: got 0.0; it must be positive and finite$"),
        (lambda: GaussianHeadLikelihood(1.0), r"^min_scale: got 1.0; it must lie in \[0, 1\)$"),
        (lambda: GaussianHeadLikelihood(-0.1), r"^min_scale: got -0.1; "),
        (lambda: GaussianHeadLikelihood().dim_y(3), r"^layer_sizes: the last width is 3; a per-point Gaussian head"),
        (
            lambda: make_likelihood("laplace"),
            r"^likelihood: got 'laplace'; it must be one of gaussian, gaussian-head, ",
        ),
    ],
)
def test_bad_arguments_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_likelihoods_by_name():
    names = {
        "gaussian": GaussianLikelihood,
        "gaussian-head": GaussianHeadLikelihood,
        "bernoulli": BernoulliLikelihood,
        "categorical": CategoricalLikelihood,
    }
    assert [type(make_likelihood(name)) for name in names] == list(names.values())
    own = GaussianLikelihood(0.7)
    assert make_likelihood(own) is own


def test_a_bounded_noise_starts_where_it_is_told_and_stays_below_its_bound():
    likelihood = GaussianLikelihood(0.05, learn_noise=True, max_noise=0.3).double()
    assert likelihood.scale().item() == pytest.approx(0.05, rel=1e-5)
    with torch.no_grad():
        likelihood.raw_noise_scale.add_(100.0)
    assert likelihood.scale().item() <= 0.3 + 1e-12
    likelihood.scale().backward()
    for options, message in (
        ({"max_noise": 0.3}, r"^max_noise: got 0.3, but the noise is not learned; pass learn_noise=True$"),
        (
            {"learn_noise": True, "max_noise": 0.05},
            r"^max_noise: got 0.05; it must be above noise_scale = 0.05$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianLikelihood(0.05, **options)
