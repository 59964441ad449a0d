"""BNP: what a resample keeps and varies, the residual bootstrap, and the guide's contract."""

import pyro
import pytest
import torch

from guides import BootstrapGuide
from guides.processes.bootstrap import with_replacement
from inference import fit, predict
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, NeuralProcess, tasks


def pair(**options):
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=4, width=8, depth=3).double()
    return model, BootstrapGuide(model, width=8, **options).double()


def points(*batch, n=6):
    return Dataset(torch.randn(*batch, n, 1).double(), torch.randn(*batch, n, 1).double())


def guide_site(guide, data):
    return pyro.poutine.trace(guide).get_trace(data).nodes["representation"]


def assert_same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_points_are_drawn_uniformly_with_replacement():
    x = torch.arange(5.0).reshape(5, 1)
    mask = torch.tensor([True, False, True, True, False])
    drawn = with_replacement(Dataset(x, 10 * x, mask).map(lambda t: t.expand(20_000, *t.shape)))
    assert torch.equal(drawn.y, 10 * drawn.x) and torch.equal(drawn.mask, mask.expand(20_000, 5))
    at = drawn.x[drawn.mask].flatten()
    for value in (0.0, 2.0, 3.0):
        assert float((at == value).float().mean()) == pytest.approx(1 / 3, abs=0.01)
    ties = drawn.x[:, 0, 0] == drawn.x[:, 2, 0]
    assert float(ties.float().mean()) == pytest.approx(1 / 3, abs=0.02)  # places are independent


def test_classes_are_resampled_with_their_inputs():
    model = NeuralProcess(1, 3, latent_dim=0, representation_dim=4, width=8, depth=3, likelihood="categorical")
    guide = BootstrapGuide(model, width=8)
    data = Dataset(torch.arange(6.0).reshape(6, 1), torch.arange(6) % 3)
    drawn = guide.resampled(data, torch.Size([7]))
    assert not guide.residual and drawn.y.shape == (7, 6)
    assert torch.equal(drawn.y, drawn.x.squeeze(-1).long() % 3)
    assert predict(model, guide, data, torch.randn(4, 1), 5).mean.shape == (4, 3)


def test_the_residual_bootstrap_moves_outputs_by_observed_residuals():
    model, guide = pair()
    with torch.no_grad():
        for parameter in guide.parameters():  # a representation that says nothing: one prediction for all resamples
            parameter.zero_()
    data = points(2)
    drawn = guide.resampled(data, torch.Size([50, 2]))
    assert_same(drawn.x, data.x.expand(50, 2, 6, 1))
    outputs = model.decoder(torch.cat([data.x, torch.zeros(2, 6, 4).double()], -1)).detach()
    predicted = model.likelihood(outputs)
    residuals = (data.y - predicted.mean) / predicted.stddev
    residuals = residuals - residuals.mean(1, keepdim=True)
    found = (drawn.y - predicted.mean) / predicted.stddev
    assert float((found.unsqueeze(-1) - residuals.mT.unsqueeze(-2)).abs().amin(-1).max()) < 1e-9
    assert not drawn.y.requires_grad


@pytest.mark.parametrize("residual", [True, False])
def test_masked_points_never_enter(residual):
    _, guide = pair(residual=residual)
    data = points(2)
    exists = torch.cat([torch.ones(2, 6), torch.zeros(2, 2)], 1).bool()
    junk = torch.full((2, 2, 1), 1e3).double()
    padded = Dataset.unchecked(torch.cat([data.x, junk], 1), torch.cat([data.y, junk], 1), exists)
    drawn = guide.resampled(padded, torch.Size([30, 2]))
    assert float(drawn.y[drawn.mask.unsqueeze(-1)].abs().max()) < 100
    assert bool(torch.isfinite(guide.representation(padded, drawn)).all())
    assert_same(guide.representation(padded, padded), guide.representation(data, data))


def test_an_empty_context_has_one_resample():
    model, guide = pair()
    data = points(2)
    empty = data.points(slice(0, 0))
    found = predict(model, guide, empty, data.x, 4).function_samples
    assert_same(found[0], found[3])
    masked = Dataset(data.x, data.y, torch.tensor([[True] * 6, [False] * 6]))
    beside = predict(model, guide, masked, data.x, 4).function_samples
    assert_same(beside[:, 1], found[:, 1])
    assert float((beside[0, 0] - beside[3, 0]).abs().max()) > 1e-6


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_each_particle_is_a_resample(batch):
    model, guide = pair()
    data = points(*batch)
    with pyro.plate("particles", 5, dim=-1 - len(batch)):
        found = guide(data)["representation"]
    assert found.shape == (5, *batch, 4)
    assert float((found[0] - found[1]).detach().abs().amin(-1).min()) > 1e-8
    prediction = predict(model, guide, data, data.x, 6, seed=1)
    assert prediction.samples.shape == (6, *batch, 6, 1)
    assert torch.equal(prediction.samples, predict(model, guide, data, data.x, 6, seed=1).samples)
    central = predict(model, guide, data, data.x, weights="mean")
    site = pyro.poutine.condition(model, {"representation": guide.representation(data, data)})
    assert_same(central.mean, model.likelihood(site(data)).mean.detach())


def test_one_point_is_its_own_resample():
    _, guide = pair(residual=False)
    data = points(3, n=1)
    assert_same(guide(data)["representation"], guide.representation(data, data))


def test_gradients_reach_everything_and_other_objectives_are_refused():
    model, guide = pair()
    batch = points(3, n=9).split(5)
    make("npml", num_particles=4).differentiable_loss(model, guide, batch).backward()
    without = [
        n
        for module in (model, guide)
        for n, p in module.named_parameters()
        if (p.grad is None or float(p.grad.abs().max()) == 0.0) and not n.endswith("empty")
    ]
    assert without == []
    with pytest.raises(ValueError, match=r"^guide: the draws of BootstrapGuide are resamples .* train it with npml$"):
        make("iwae", num_particles=2).terms(model, guide, batch)
    with pytest.raises(NotImplementedError):  # what says elsewhere that there is no density
        guide_site(guide, batch.context)["fn"].log_prob(torch.zeros(3, 4))


def test_a_fit_beats_its_start():
    stream = tasks.gp("rbf", 8, **tasks.TNP_COUNTS)
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=16, width=16, depth=3)
    guide = BootstrapGuide(model, width=16)
    objective = make("npml", num_particles=4, normalize=True)

    def score():
        with torch.no_grad():
            return sum(float(objective.terms(model, guide, stream.batch(10**6 + i)).bound.mean()) for i in range(8)) / 8

    before = score()
    fit(model, guide, stream, objective, steps=120, learning_rate=3e-3, progress=False)
    assert score() > before + 0.2


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: BootstrapGuide(BayesianNetwork([1, 2])), TypeError, r"^model: got BayesianNetwork; BootstrapGuide is"),
        (lambda: BootstrapGuide(NeuralProcess(1, 1)), ValueError, r"^model: got latent_dim = 128 and a path: False"),
    ],
)
def test_refusals_in_one_line(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_the_guide_needs_observed_points():
    with pytest.raises(ValueError, match=r"^data: y is None; a guide reads observed points$"):
        pair()[1](Dataset(torch.randn(4, 1).double()))
