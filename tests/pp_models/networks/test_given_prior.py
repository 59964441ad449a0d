"""Priors given by the user, and learned ones transferred as constants."""

import pytest
import torch

from pp_models import BayesianNetwork, FixedGaussianPrior, GivenGaussianPrior, LearnedGaussianPrior
from pp_models.networks.learned_prior import COVARIANCES
from pp_models.networks.priors import GRANULARITIES
from pp_models.sealed_tensors import sealed_tensors

SHAPES = [(3, 3), (1, 4)]


def trained(granularity, covariance="full", **options):
    """A learned prior with random parameters, in double precision."""
    prior = LearnedGaussianPrior(granularity, covariance=covariance, **options)
    BayesianNetwork([2, 3, 1], prior=prior)
    prior.double()
    with torch.no_grad():
        for p in prior.parameters():
            p.normal_(0, 0.4)
    return prior


def log_density(prior, weights):
    return torch.stack([prior.layer(i, weights[:i]).log_prob(w).sum() for i, w in enumerate(weights)]).sum()


@pytest.fixture
def weights():
    torch.manual_seed(3)
    return [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_transferred_prior_is_the_learned_one_and_stays(granularity, weights):
    torch.manual_seed(0)
    learned = trained(granularity)
    given = learned.as_given()
    model = BayesianNetwork([2, 3, 1], prior=given)
    expected = log_density(learned, weights)
    torch.testing.assert_close(log_density(given, weights), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(1.0)
    torch.testing.assert_close(log_density(given, weights), expected, rtol=1e-12, atol=1e-12)
    assert (log_density(learned, weights) - expected).abs() > 1e-2
    assert not [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_saved_and_read_back(granularity, weights, tmp_path):
    torch.manual_seed(0)
    given = trained(granularity).as_given()
    given.save(tmp_path / "prior.safetensors")
    read = GivenGaussianPrior.load(tmp_path / "prior.safetensors")
    read.build(SHAPES)
    given.build(SHAPES)
    assert torch.equal(log_density(read, weights), log_density(given, weights))
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]


def test_a_file_that_is_no_prior(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"^path: .*x.safetensors cannot be read as a prior \("):
        GivenGaussianPrior.load(path)
    with pytest.raises(ValueError, match=r"^path: .*none cannot be read as a prior"):
        GivenGaussianPrior.load(tmp_path / "none")


def test_given_covariances_are_those_of_the_density(weights):
    """Against torch's dense Gaussian, all four kinds."""
    torch.manual_seed(1)

    def spd(*shape):
        a = torch.randn(*shape, shape[-1], dtype=torch.float64)
        return a @ a.mT + torch.eye(shape[-1], dtype=torch.float64)

    dense = torch.distributions.MultivariateNormal
    means = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    flat = torch.cat([w.flatten() for w in weights])
    cases = {
        "weight": (means, [torch.rand(shape, dtype=torch.float64) + 0.1 for shape in SHAPES]),
        "unit": (means, [spd(*shape) for shape in SHAPES]),
        "layer": (means, [spd(a * b) for a, b in SHAPES]),
        "network": (torch.cat([m.flatten() for m in means]), spd(13)),
    }
    for kind, (loc, cov) in cases.items():
        prior = GivenGaussianPrior(loc, cov)
        prior.build(SHAPES)
        assert prior.granularity == kind
        if kind == "network":
            expected = dense(loc, cov).log_prob(flat)
        elif kind == "weight":
            expected = sum(
                torch.distributions.Normal(m, c.sqrt()).log_prob(w).sum()
                for m, c, w in zip(loc, cov, weights, strict=True)
            )
        elif kind == "unit":
            expected = sum(dense(m, c).log_prob(w).sum() for m, c, w in zip(loc, cov, weights, strict=True))
        else:
            expected = sum(
                dense(m.flatten(), c).log_prob(w.flatten()) for m, c, w in zip(loc, cov, weights, strict=True)
            )
        torch.testing.assert_close(log_density(prior, weights), expected, rtol=1e-10, atol=1e-10)


ONES = [torch.zeros(3, 3), torch.zeros(1, 4)]


@pytest.mark.parametrize(
    ("means", "covariances", "message"),
    [
        (
            ONES,
            [torch.eye(3).expand(3, 3, 3), -torch.eye(4).unsqueeze(0)],
            r"^covariances: that of layer 1 is not positive definite \(smallest eigenvalue -1\)$",
        ),
        (
            ONES,
            [torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]]).expand(3, 3, 3), torch.eye(4).unsqueeze(0)],
            r"^covariances: that of layer 0 is not symmetric$",
        ),
        (ONES, [torch.ones(3, 3), torch.zeros(1, 4)], r"^covariances: layer 1 has a variance of 0; all are positive$"),
        (ONES, [torch.ones(3, 3)], r"^means, covariances: got 2 and 1 layers; it must be as many of both$"),
        (ONES, torch.eye(13), r"^means, covariances: one is a tensor and one a list; both must be the same$"),
        (
            ONES,
            [torch.ones(3, 3), torch.eye(4).unsqueeze(0)],
            r"^covariances: got layers of kinds unit, weight; all must be of one kind$",
        ),
        (
            ONES,
            [torch.ones(3, 2), torch.ones(1, 4)],
            r"^covariances: that of layer 0 has shape \[3, 2\]; with means \[3, 3\] it must be \[k_out, k\], ",
        ),
        ([ONES[0] / 0, ONES[1]], ONES, r"^means: that of layer 0 has values that are not finite$"),
        ([[0.0]], [[1.0]], r"^means: that of layer 0 is no tensor of floating-point numbers$"),
    ],
)
def test_bad_moments_in_one_line(means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GivenGaussianPrior(means, covariances)


def test_a_prior_of_another_network_is_refused():
    given = GivenGaussianPrior(ONES, [torch.ones_like(m) for m in ONES])
    with pytest.raises(ValueError, match=r"^prior: it holds means of shapes .*, but the network's weights need "):
        BayesianNetwork([2, 4, 1], prior=given)
    for prior in (FixedGaussianPrior(), LearnedGaussianPrior("unit")):
        BayesianNetwork([2, 3, 1], prior=prior)
        with pytest.raises(ValueError, match=r"^prior: it belongs to a network of weights \[\(3, 3\), \(1, 4\)\], "):
            BayesianNetwork([2, 4, 1], prior=prior)
    with pytest.raises(ValueError, match=r"^prior: it belongs to no model yet, so that its size is unknown$"):
        LearnedGaussianPrior("unit").as_given()


def test_models_of_the_same_shapes_share_a_learned_prior():
    prior = LearnedGaussianPrior("unit")
    first = BayesianNetwork([2, 3, 1], prior=prior)
    with torch.no_grad():
        prior.loc[0].fill_(2.0)
    second = BayesianNetwork([2, 3, 1], prior=prior, activation="tanh")
    assert first.prior.loc[0] is second.prior.loc[0]
    assert bool((second.prior.loc[0] == 2.0).all())


# -- covariances with fewer numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["unit", "layer", "network"])
def test_low_rank_is_a_diagonal_and_a_low_rank_part(granularity):
    torch.manual_seed(0)
    prior = trained(granularity, "low-rank", rank=2)
    for i in range(len(prior.loc)):
        tril = prior.moments(i)[1]
        expected = torch.diag_embed((2 * prior.log_diagonal[i]).exp()) + prior.lower[i] @ prior.lower[i].mT
        torch.testing.assert_close(tril @ tril.mT, expected, rtol=1e-12, atol=1e-12)
        assert prior.lower[i].shape[-1] == 2


@pytest.mark.parametrize("granularity", ["unit", "layer", "network"])
def test_sparse_has_a_share_of_the_places(granularity):
    torch.manual_seed(0)
    prior = trained(granularity, "sparse", density=0.25, seed=4)
    again = trained(granularity, "sparse", density=0.25, seed=4)
    for i in range(len(prior.loc)):
        tril = prior.moments(i)[1]
        n = tril.shape[-1]
        below = (tril != 0).tril(-1).flatten(-2).sum(-1)
        assert bool((below == -(-n * (n - 1) // 2 // 4)).all())
        assert bool((tril.triu(1) == 0).all())
        assert torch.equal(getattr(prior, f"places_{i}"), getattr(again, f"places_{i}"))
    full = trained(granularity, "full")
    assert sum(p.numel() for p in prior.lower) < sum(p.numel() for p in full.lower)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("granularity", ["unit", "layer", "network"])
def test_every_number_is_learned_and_the_rest_stays(granularity, covariance, weights):
    """The cheaper covariances learned in part: gradients everywhere, and none where the prior is not to be learned."""
    torch.manual_seed(0)
    prior = trained(granularity, covariance, density=0.5)
    (-log_density(prior, weights)).backward()
    for name, p in prior.named_parameters():
        live = p.grad.tril(-1) if name.startswith("lower") and covariance == "full" else p.grad
        assert bool((live != 0).any()), name
    partly = trained(granularity, covariance, trainable=0.5, density=0.5)
    whole = [partly.moments(i)[1] for i in range(len(partly.loc))]
    for i, tril in enumerate(whole):
        kept = ~getattr(partly, f"learned_{i}")
        covariances = tril @ tril.mT
        eye = torch.eye(tril.shape[-1], dtype=torch.float64).expand_as(covariances)
        assert torch.equal(covariances[kept], eye[kept])


@pytest.mark.parametrize("covariance", ["low-rank", "sparse"])
def test_cheaper_covariances_start_at_the_standard_prior(covariance):
    prior = LearnedGaussianPrior("unit", covariance=covariance)
    BayesianNetwork([2, 3, 1], prior=prior)
    for i in range(2):
        tril = prior.moments(i)[1]
        torch.testing.assert_close(tril, torch.eye(tril.shape[-1]).expand_as(tril), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "banded"}, r"^covariance: got 'banded'; it must be one of full, low-rank, sparse$"),
        (
            {"covariance": "sparse", "granularity": "weight"},
            r"^covariance: got 'sparse', but with granularity='weight'",
        ),
        ({"covariance": "low-rank", "rank": 0}, r"^rank: got 0; it must be at least 1$"),
        ({"covariance": "sparse", "density": 0.0}, r"^density: got 0.0; it must lie in \(0, 1\]$"),
    ],
)
def test_bad_covariances(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedGaussianPrior(**{"granularity": "unit", **options})


def test_a_prior_that_was_altered_or_is_not_finite(tmp_path):
    path = tmp_path / "prior.safetensors"
    given = trained("unit").as_given()
    given.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a prior \(.*: truncated or altered \(SHA"):
        GivenGaussianPrior.load(path)
    for change, message in (
        (lambda t: t * torch.nan, r"holds no prior \(\S+ is not of finite real numbers\)$"),
        (lambda t: t.float() + 0j, r"holds no prior \(\S+ is not of finite real numbers\)$"),
    ):
        tensors = {name: change(tensor) for name, tensor in given.state_dict().items()}
        path.write_bytes(sealed_tensors(tensors, {"granularity": "unit"}))
        with pytest.raises(ValueError, match=message):
            GivenGaussianPrior.load(path)
    path.write_bytes(sealed_tensors({"loc_0": torch.zeros(2)}, {"granularity": "unit"}))
    with pytest.raises(ValueError, match=r"^path: .* holds no prior$"):
        GivenGaussianPrior.load(path)
