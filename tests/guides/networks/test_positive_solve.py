"""Solutions, determinants and traces by hand-written gradients, against torch's own and against what they stand for."""

import pytest
import torch

import guides.networks.conjugate_layer as conjugate_layer
from guides import BNNWeightGuide
from guides.networks.positive_solve import PositiveMatrix
from guides.networks.whitened_gaussian import gaussian_blocks, prior_of
from pp_models import BayesianNetwork, Dataset, FixedGaussianPrior, LearnedGaussianPrior

K, N = 4, 6


def positive(*batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, K, K + 2, generator=generator, dtype=torch.float64)
    return (root @ root.mT + torch.eye(K, dtype=torch.float64)).requires_grad_()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    "values", [(2, 3, K, 2), (5, 2, 3, K, 1), (7, 5, 2, 3, K, 2), (3, K, 1), (2, 1, K, 1), (2, 3, K, 0)]
)
def test_solutions_and_their_gradients_are_torchs(values):
    matrix, b = positive(2, 3), normal(*values)
    found = PositiveMatrix(matrix).solve(b)
    expected = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for mine, torchs in zip(
        torch.autograd.grad((weight * found).sum(), (matrix, b)),
        torch.autograd.grad((weight * expected).sum(), (matrix, b)),
        strict=True,
    ):
        torch.testing.assert_close(mine, torchs)


def test_determinants_and_traces_and_their_gradients_are_torchs():
    matrix = positive(2, 3)
    weight = positive(3, seed=5)
    found, inverse = PositiveMatrix(matrix), torch.linalg.inv(matrix)
    pairs = [
        (found.log_det(), torch.logdet(matrix)),
        (found.trace_of_inverse(), inverse.diagonal(dim1=-2, dim2=-1).sum(-1)),
        (found.trace_of_inverse(weight), (inverse * weight).sum((-1, -2))),
        (found.divergence(), inverse.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.logdet(matrix)),
        (found.lower, torch.linalg.cholesky(matrix)),
    ]
    for mine, torchs in pairs:
        torch.testing.assert_close(mine, torchs)
        scale = torch.randn_like(torchs)
        got = torch.autograd.grad((scale * mine).sum(), (matrix, weight), allow_unused=True)
        wanted = torch.autograd.grad((scale * torchs).sum(), (matrix, weight), allow_unused=True, retain_graph=True)
        symmetric = wanted[0] + wanted[0].mT
        torch.testing.assert_close(got[0] + got[0].mT, symmetric)
        assert (got[1] is None) == (wanted[1] is None)
        if got[1] is not None:
            torch.testing.assert_close(got[1], wanted[1])


def test_a_second_derivative_is_refused_not_wrong():
    matrix = positive(2)
    for value in (PositiveMatrix(matrix).log_det(), PositiveMatrix(matrix).solve(normal(2, K, 1))):
        with pytest.raises(RuntimeError, match="create_graph: got True; gradients of a conjugate layer are of first"):
            torch.autograd.grad(value.sum(), matrix, create_graph=True)


def pair(prior="unit", sizes=(2, 3, 2), solver="primal"):
    torch.manual_seed(0)
    prior = FixedGaussianPrior() if prior == "fixed" else LearnedGaussianPrior(prior)
    model = BayesianNetwork(list(sizes), prior=prior, noise_scale=0.3).double()
    guide = BNNWeightGuide(model, solver=solver).double()
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, guide


def context(masked=False):
    x, y = normal(2, N, 2, seed=2).detach(), normal(2, N, 2, seed=3).detach()
    mask = torch.tensor([[True] * N, [True] * 2 + [False] * (N - 2)]) if masked else None
    return Dataset(x, y, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("granularity", ["fixed", "weight", "unit", "layer", "network"])
def test_a_perturbed_draw_has_the_covariance_and_its_gradient(granularity, masked, monkeypatch):
    """Over every direction of the noise, Σ (u - m)(u - m)ᵀ is Λ⁻¹ exactly, and so are the derivatives."""
    _, guide = pair(granularity)
    data = context(masked)
    q = guide.conditional(0, data, data.x, [])
    size, units = q.block_shape[-1], q.event_shape[0]
    whole = q.block_shape[0] == 1
    points = N * units if whole else N
    count = size + points

    def directions(*shape, dtype=None, device=None):
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        noise = torch.zeros(shape, dtype=dtype)
        if shape[-2:] == q.block_shape and not directions.first:
            directions.first = True
            noise[:size] = torch.eye(size, dtype=dtype).reshape(size, *[1] * (len(shape) - 2), size)
        else:
            for i in range(points):
                if whole:
                    noise[size + i, ..., i // units, i % units] = 1
                else:
                    noise[size + i, ..., i, :] = 1
        return noise

    directions.first = False
    shape = torch.Size([count, 2, *q.block_shape])
    monkeypatch.setattr(torch, "randn", directions)
    u = q.whitened.draw(shape) - q.whitened.mean
    monkeypatch.undo()
    found = torch.einsum("s...i,s...j->...ij", u, u)
    expected = q.whitened.precision.solve(torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(found, expected)
    parameters = [p for p in guide.networks[0].parameters()] + [p for p in guide.model.prior.parameters()]
    weight = torch.randn_like(found)
    weight = weight + weight.mT
    got = torch.autograd.grad((weight * found).sum(), parameters, allow_unused=True, retain_graph=True)
    wanted = torch.autograd.grad((weight * expected).sum(), parameters, allow_unused=True)
    for parameter, mine, exact in zip(parameters, got, wanted, strict=True):
        zeros = torch.zeros_like(parameter)
        mine, exact = (zeros if g is None else g for g in (mine, exact))
        torch.testing.assert_close(mine, exact, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("granularity", ["fixed", "weight", "unit", "layer"])
def test_the_divergence_to_ones_own_prior_is_the_general_one(granularity, solver, monkeypatch):
    model, guide = pair(granularity, solver=solver)
    data = context(masked=True)
    q = guide.conditional(0, data, data.x, [])
    p = model.prior.layer(0, []).expand([2])
    assert prior_of(p) == q.prior is not None
    parameters = [p for p in (*guide.networks[0].parameters(), *model.prior.parameters())]
    short = torch.distributions.kl_divergence(q, p)
    got = torch.autograd.grad(short.sum(), parameters, allow_unused=True, retain_graph=True)
    monkeypatch.setattr("guides.networks.whitened_gaussian.prior_of", lambda fn: None)
    long = torch.distributions.kl_divergence(q, p)
    wanted = torch.autograd.grad(long.sum(), parameters, allow_unused=True)
    torch.testing.assert_close(short, long)
    for parameter, mine, exact in zip(parameters, got, wanted, strict=True):
        zeros = torch.zeros_like(parameter)
        mine, exact = (zeros if g is None else g for g in (mine, exact))
        torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-9)
    other = LearnedGaussianPrior("unit")
    other.build(model.weight_shapes)
    assert prior_of(other.double().layer(0, [])) != q.prior  # equal in value is not the same
    network = LearnedGaussianPrior("network")
    network.build(model.weight_shapes)
    assert prior_of(network.layer(0, [])) is None  # its layers depend on the draws of those below
    assert gaussian_blocks(p, q.block_shape) is not None


@pytest.mark.parametrize("prior", [FixedGaussianPrior(), LearnedGaussianPrior("unit")])
def test_one_product_for_all_units_is_one_for_each(prior, monkeypatch):
    prior.build([(5, 3)])
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(4, 2, N, 3, generator=generator, dtype=torch.float64)
    target, precision = (
        torch.randn(2, N, 5, generator=generator).double(),
        torch.rand(2, N, 5, generator=generator).double(),
    )
    blocks = prior.double().gaussian(0, [])
    both = []
    for few in (1, 100):
        monkeypatch.setattr(conjugate_layer, "FEW_UNITS", few)
        gram, moment = conjugate_layer.statistics(phi, target, precision, blocks)
        both.append((gram, moment, *conjugate_layer.whiten(gram, moment, blocks)))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)
    if not blocks.diagonal:
        torch.testing.assert_close(both[0][2], blocks.factor.mT @ gram @ blocks.factor)
