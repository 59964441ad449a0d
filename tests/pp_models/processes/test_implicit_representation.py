"""Implicit representations: points on their own, no grid, a plain network at zero, and what training brings."""

import pyro
import pytest
import torch

from guides import BootstrapGuide, CAVIAGuide, FlowGuide, NeuralProcessGuide
from inference import fit, predict
from inference.objectives import make
from pp_models import Dataset, FiLMNetwork, ImplicitRepresentation, NeuralProcess, TaskBatch, tasks

both = pytest.mark.parametrize("basis", ["fourier", "siren"])


def build(basis="fourier", dim_x=1, **options):
    options = {"latent_dim": 4, "width": 8, "depth": 3, "frequencies": 4} | options
    return ImplicitRepresentation(dim_x, 1, basis=basis, **options).double()


def outputs(model, x, **values):
    return pyro.condition(model, values)(Dataset(x))


def points(*batch, n=7, dim_x=1):
    return Dataset(torch.rand(*batch, n, dim_x).double() * 4 - 2, torch.randn(*batch, n, 1).double())


@both
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_a_point_is_decoded_on_its_own(basis, batch):
    model, x = build(basis, 2, representation_dim=3), torch.randn(*batch, 6, 2).double()
    values = {"z": torch.randn(*batch, 4).double(), "representation": torch.randn(*batch, 3).double()}
    together = outputs(model, x, **values)
    for i in range(6):
        torch.testing.assert_close(outputs(model, x[..., i : i + 1, :], **values)[..., 0, :], together[..., i, :])


@both
def test_two_tasks_together_are_as_each_alone(basis):
    model, x, z = build(basis), torch.randn(2, 5, 1).double(), torch.randn(2, 4).double()
    together = outputs(model, x, z=z)
    for i in range(2):
        torch.testing.assert_close(outputs(model, x[i], z=z[i]), together[i])


@pytest.mark.parametrize("name", ["elbo", "npvi", "conditional-prior", "npml", "iw-em", "pp-avi"])
def test_the_bound_does_not_depend_on_what_else_is_asked(name):
    """Points that nobody observed may be asked beside those that were: the bound is the same to the last digits."""
    model = build()
    guide = NeuralProcessGuide(model, 8).double()
    context, target, more = points(3, n=4), points(3, n=5), points(3, n=6)
    unseen = Dataset(more.x, more.y, torch.zeros(3, 6, dtype=torch.bool))
    found = []
    for asked in (target, target | unseen):
        torch.manual_seed(0)
        found.append(make(name, num_particles=2).terms(model, guide, TaskBatch(context, asked)).bound)
    torch.testing.assert_close(found[1], found[0])


@both
def test_the_likelihood_is_the_sum_over_points_whatever_their_grid(basis):
    model, d = build(basis), points(2)
    z = torch.randn(2, 4).double()

    def log_likelihood(data):
        trace = pyro.poutine.trace(pyro.condition(model, {"z": z})).get_trace(data)
        return trace.nodes["y"]["fn"].log_prob(data.y)

    alone = sum(log_likelihood(d.points(torch.tensor([i]))) for i in range(7))
    torch.testing.assert_close(log_likelihood(d), alone)


def test_predictions_at_a_part_of_a_grid_are_that_part():
    model = build()
    guide = NeuralProcessGuide(model, 8).double()
    d, x = points(2), torch.linspace(-2, 2, 9).double().reshape(1, 9, 1).expand(2, 9, 1)
    part = predict(model, guide, d, x[:, 2:5], num_samples=3, seed=0)
    torch.testing.assert_close(part.mean, predict(model, guide, d, x, num_samples=3, seed=0).mean[:, 2:5])


@both
def test_no_modulation_is_the_plain_network(basis):
    model, x = build(basis), torch.randn(5, 1).double()
    with torch.no_grad():
        for value in model.decoder.modulation[-1].parameters():
            value.zero_()
    plain = model.decoder.network(model.decoder.features(x))
    assert torch.equal(outputs(model, x, z=torch.randn(4).double()), plain)


def test_a_modulation_by_hand():
    network = FiLMNetwork([2, 3, 1], "tanh").double()
    x, scale, shift = (torch.randn(*shape).double() for shape in ((4, 2), (3,), (3,)))
    first, last = network.layers
    expected = last(torch.tanh((1 + scale) * first(x) + shift))
    torch.testing.assert_close(network(x, [torch.cat([scale, shift])]), expected)
    assert torch.equal(network(x, [torch.zeros(6).double()]), network(x))


def test_every_guide_of_a_neural_process_fits_it():
    """With a representation alone it is functa, by gradient steps; a flow over the latent, and a bootstrap."""
    batch = tasks.gp("rbf", 3).batch(0)
    alone = {"latent_dim": 0, "representation_dim": 5, "width": 8, "depth": 3}
    for options, cls, name in (
        (alone, CAVIAGuide, "npml"),
        (alone, BootstrapGuide, "npml"),
        ({"latent_dim": 3, "width": 8, "depth": 3}, FlowGuide, "iwae"),
    ):
        model = ImplicitRepresentation(1, 1, **options)
        guide = cls(model, 8)
        loss = make(name, num_particles=2).differentiable_loss(model, guide, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def series(seed, count=16, n=24):
    """Sines of unknown phase at irregular times, half of which are the context."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, n, 1, generator=generator) * 4 - 2
    phase = torch.rand(count, 1, 1, generator=generator) * 6.3
    return TaskBatch.split(Dataset(x, torch.sin(2 * x + phase)), 12)


def test_it_learns_irregular_series_sooner_than_a_neural_process():
    held_out = series(10_000, 64)
    for seed in range(3):
        scores = {}
        for cls in (ImplicitRepresentation, NeuralProcess):
            torch.manual_seed(seed)
            model = cls(1, 1, latent_dim=8, width=24, depth=3)
            guide = NeuralProcessGuide(model, 24)
            objective = make("npvi", kl_reduction="sum", normalize=True)
            untrained = score(model, guide, held_out)
            stream = (series(1_000 * seed + i) for i in range(200))
            fit(model, guide, stream, objective, steps=200, learning_rate=5e-3, progress=False)
            scores[cls] = score(model, guide, held_out)
            assert scores[cls] > untrained + 0.2
        assert scores[ImplicitRepresentation] > scores[NeuralProcess] + 0.1


def score(model, guide, batch):
    with torch.no_grad():
        found = predict(model, guide, batch.context, batch.target.x, num_samples=8, seed=0)
        return float(found.log_prob(batch.target.y).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, r"^depth: got 1; it must be at least 2, for a hidden layer is what is modulated$"),
        ({"basis": "wavelet"}, r"^basis: got 'wavelet'; it must be 'fourier' or 'siren'$"),
        ({"lengthscale": 0.0}, r"^lengthscale: got 0.0; it must be"),
        ({"latent_dim": 0}, r"^latent_dim, representation_dim: both are 0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImplicitRepresentation(1, 1, **options)
