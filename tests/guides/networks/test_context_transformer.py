"""Transformers as inference networks: what a point's pseudo-observations may and may not depend on."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from guides import BNNWeightGuide
from guides.networks.bnn_online import OnlinePosterior
from guides.networks.context_transformer import ContextTransformer
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior


def pair(**options):
    model = BayesianNetwork([1, 6, 5, 1], prior=LearnedGaussianPrior("unit"), noise_scale=0.3, activation="tanh")
    options = {"inference": "transformer", "width": 8, "solver": "primal", **options}
    return model.double(), BNNWeightGuide(model, **options).double()


def data(*batch, n=6, mask=None):
    return Dataset(torch.randn(*batch, n, 1).double(), torch.randn(*batch, n, 1).double(), mask)


def observations(guide, index, d, seed=0):
    """Pseudo-targets and precisions of a layer, its input made from the points themselves."""
    torch.manual_seed(seed)
    features = torch.tanh(d.x @ torch.randn(1, guide.shapes[index][1] - 1).double())
    with torch.no_grad():
        return guide.pseudo_observations(index, d, features)


@pytest.mark.parametrize("use_activation", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_a_points_pseudo_observations_depend_on_the_others(index, use_activation):
    moved = {}
    for inference in ("mlp", "transformer"):
        _, guide = pair(inference=inference, use_activation=use_activation)
        d = data(2)
        changed = Dataset(d.x, torch.cat([d.y[:, :5], d.y[:, 5:] + 3.0], 1))
        first, second = (observations(guide, index, each)[0][:, :5] for each in (d, changed))
        moved[inference] = float((first - second).abs().max())
    assert moved["mlp"] < 1e-14  # the width of a product may change how it is summed
    assert moved["transformer"] > 1e-3


@pytest.mark.parametrize("use_activation", [False, True])
def test_the_order_of_points_is_carried_along(use_activation):
    _, guide = pair(use_activation=use_activation)
    d = data(2, 3)
    order = torch.randperm(6)
    for index in range(3):
        for here, there in zip(observations(guide, index, d), observations(guide, index, d.points(order)), strict=True):
            torch.testing.assert_close(here[..., order, :], there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_activation", [False, True])
def test_a_padded_batch_is_its_tasks_one_by_one(use_activation):
    _, guide = pair(use_activation=use_activation)
    tasks = [data(n=n) for n in (9, 4, 1)]
    together = Dataset.pad(tasks)
    for index in range(3):
        targets, precisions = observations(guide, index, together)
        for t, one in enumerate(tasks):
            target, precision = observations(guide, index, one)
            n = one.num_points
            torch.testing.assert_close(precisions[t, :n], precision, rtol=1e-12, atol=1e-12)
            assert float(precisions[t, n:].abs().sum()) == 0.0
            torch.testing.assert_close(targets[t, :n], target, rtol=1e-12, atol=1e-12)


def test_particles_are_read_apart():
    """With the layer's input in what it reads, each particle's context is a set of its own."""
    _, guide = pair(use_activation=True)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    d = data(2, mask=mask)
    features = torch.randn(4, 2, 6, 6).double()
    with torch.no_grad():
        together = guide.pseudo_observations(1, d, features)
        for s in range(4):
            for all_of_them, one in zip(together, guide.pseudo_observations(1, d, features[s]), strict=True):
                torch.testing.assert_close(all_of_them[s], one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("points", [0, 4])
@pytest.mark.parametrize("use_activation", [False, True])
def test_an_empty_context_gives_the_prior(use_activation, points):
    model, guide = pair(use_activation=use_activation)
    d = data(2, n=points, mask=torch.zeros(2, points, dtype=torch.bool))
    terms = make("elbo", num_particles=3).terms(model, guide, d)
    assert float(terms.kl.detach().abs().max()) < 1e-11
    terms.bound.sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in guide.parameters())


def test_pseudo_noise_starts_at_about_the_mlps():
    """sd e^-2, whichever the inference network."""
    for inference in ("mlp", "transformer"):
        torch.manual_seed(0)
        model = BayesianNetwork([1, 32, 32, 1])
        guide = BNNWeightGuide(model, inference=inference, width=64)
        d = Dataset(torch.randn(8, 40, 1), torch.randn(8, 40, 1))
        with torch.no_grad():
            target, precision = guide.pseudo_observations(1, d, torch.randn(8, 40, 32))
        log_sd = -0.5 * precision.log()
        assert abs(float(log_sd.mean()) + 2.0) < 0.1
        assert 0.02 < float(log_sd.std()) < 0.5
        assert 0.02 < float(target.std()) < 0.5


def test_without_attention_it_is_its_per_point_part():
    network = ContextTransformer(2, 3, 8, 1, 2).double()
    assert network(torch.zeros(2, 0, 2).double()).shape == (2, 0, 3)
    one = torch.randn(5, 1, 2).double()  # a set of one point
    torch.testing.assert_close(network(one), network(one, torch.ones(5, 1, dtype=torch.bool)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["elbo", "pp-avi", "npml", "npvi"])
def test_it_trains(name):
    torch.manual_seed(2)
    model = BayesianNetwork([1, 8, 8, 1], prior=LearnedGaussianPrior("unit"), noise_scale=0.3, activation="tanh")
    guide = BNNWeightGuide(model, inference="transformer", width=16)
    x = torch.linspace(-2, 2, 16).reshape(1, 16, 1).expand(4, 16, 1)
    phase = torch.rand(4, 1, 1) * 2 * math.pi
    batch = Dataset(x, torch.sin(2 * x + phase)).points(torch.randperm(16)).split(8)
    objective = make(name, num_particles=8, normalize=True)
    optimiser = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=3e-3)
    losses = []
    for _ in range(24):
        optimiser.zero_grad()
        losses.append(objective.differentiable_loss(model, guide, batch))
        losses[-1].backward()
        optimiser.step()
    found = torch.stack(losses).detach()
    assert bool(torch.isfinite(found).all())
    assert float(found[-6:].mean()) < float(found[:4].mean())


def test_points_one_by_one_need_a_last_layer_that_reads_none():
    with pytest.raises(ValueError, match=r"^data: new points would attend .* in the last layer's transformer, so that"):
        OnlinePosterior.start(pair()[1], data(2))
    model, guide = pair(final_targets="real", final_noise="real")
    first, later = data(2, n=5), data(2, n=3)
    start = OnlinePosterior.start(guide, first, num_samples=4)
    state = start
    for n in range(3):
        state = state.update(later.points(slice(n, n + 1)))
    both = first | later
    joint = guide.conditional(2, both, guide.layer_input(both.x, start.hidden), start.hidden)
    torch.testing.assert_close(state.last_layer().mean, joint.mean, rtol=0, atol=1e-10)
    with pyro.plate("particles", 4, dim=-2):
        outputs = poutine.condition(model, data=state.draw())(Dataset(later.x))
    assert outputs.shape == (4, 2, 3, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference": "cnn"}, r"^inference: got 'cnn'; it must be 'mlp' or 'transformer'$"),
        ({"hidden": [8]}, r"^hidden: got \[8\], the widths of MLPs; a transformer takes width and num_blocks$"),
        ({"chunk_size": 5}, r"^chunk_size: got 5, but the points of a chunk would attend only to one another; a trans"),
        ({"width": 6}, r"^width: got 6; attention needs a multiple of num_heads, 4$"),
        ({"num_blocks": 0}, r"^num_blocks: got 0; it must be at least 1$"),
        ({"num_heads": 0}, r"^num_heads: got 0; it must be at least 1$"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        pair(**options)
    assert "\n" not in str(caught.value)
