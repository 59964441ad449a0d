"""The attention network: its numbers against torch's own transformer, masks, sites, and what it does not promise."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from guides import AmortisedMeanFieldGuide, BNNWeightGuide
from guides.networks.bnn_online import OnlinePosterior
from inference import predict
from inference.objectives import REGISTRY, make
from inference.reference.numpyro_twin import numpyro_twin
from pp_models import (
    BayesianAttentionNetwork,
    BayesianNetwork,
    Dataset,
    FixedGaussianPrior,
    GaussianLikelihood,
    LearnedGaussianPrior,
)

WIDTH, HEADS = 8, 2


def network(num_blocks=2, **options):
    return BayesianAttentionNetwork(2, 3, width=WIDTH, num_blocks=num_blocks, num_heads=HEADS, **options)


def disturbed(module, scale=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def data(*batch, n=6, mask=None, dtype=torch.float64):
    return Dataset(torch.randn(*batch, n, 2, dtype=dtype), torch.randn(*batch, n, 3, dtype=dtype), mask)


def reference(model, weights, x, mask=None):
    """One task, ``[N, Dx]``, through torch.nn.TransformerEncoderLayer with the drawn weights."""

    def affine(inputs, w):
        return torch.nn.functional.linear(inputs, w[:, :-1], w[:, -1])

    hidden = affine(x, weights[0])
    for block in range(model.num_blocks):
        q, k, v, o, first, second = weights[1 + 6 * block : 7 + 6 * block]
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, WIDTH, dropout=0.0, activation=model.activation, batch_first=True, norm_first=False
        ).double()
        with torch.no_grad():
            attention, qkv = layer.self_attn, torch.cat([q, k, v])
            pairs = [(attention.in_proj_weight, attention.in_proj_bias, qkv)]
            parts = ((attention.out_proj, o), (layer.linear1, first), (layer.linear2, second))
            pairs += [(part.weight, part.bias, w) for part, w in parts]
            for weight, bias, w in pairs:
                weight.copy_(w[:, :-1])
                bias.copy_(w[:, -1])
        layer.norm1, layer.norm2 = model.norms[2 * block], model.norms[2 * block + 1]
        padding = None if mask is None else ~mask[None]
        hidden = layer(hidden[None], src_key_padding_mask=padding)[0]
    return affine(getattr(torch.nn.functional, model.activation)(hidden), weights[-1])


def weights_of(trace, model):
    return [trace.nodes[model.site(i)]["value"] for i in range(model.num_layers)]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_outputs_are_those_of_a_plain_transformer(num_blocks, activation):
    model = disturbed(network(num_blocks, activation=activation, prior=FixedGaussianPrior(False)).double())
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False], [True] + [False] * 5])
    d = data(3, mask=mask)
    trace = poutine.trace(model).get_trace(d)
    outputs, weights = trace.nodes["_RETURN"]["value"], weights_of(trace, model)
    assert outputs.shape == (3, 6, 3)
    for t in range(3):
        expected = reference(model, [w[t] for w in weights], d.x[t], mask[t])
        torch.testing.assert_close(outputs[t][mask[t]], expected[mask[t]], rtol=1e-10, atol=1e-10)


def test_sites_and_shapes():
    model = BayesianAttentionNetwork(2, 3, width=8, num_blocks=2, num_heads=4, likelihood="gaussian-head")
    assert model.num_layers == 14
    assert model.weight_shapes == [(8, 3), *[(8, 9)] * 12, (6, 9)]
    d = Dataset(torch.randn(4, 5, 2), torch.randn(4, 5, 3))
    nodes = poutine.trace(model).get_trace(d).nodes
    latents = [n for n, s in nodes.items() if s["type"] == "sample" and n.startswith("layer")]
    assert latents == [f"layer_{i}.weight" for i in range(14)]
    assert nodes["y"]["value"].shape == (4, 5, 3)
    classes = BayesianAttentionNetwork(2, 3, width=8, num_heads=2, likelihood="categorical")
    assert classes.weight_shapes[-1] == (3, 9)
    assert poutine.trace(classes).get_trace(Dataset(d.x)).nodes["y"]["value"].shape == (4, 5)
    # the prior says whether its covariance is divided by the fan-in
    scales = [
        network(prior=FixedGaussianPrior(s)).prior.layer(1, []).base_dist.scale[0, 0].item() for s in (False, True)
    ]
    assert scales == pytest.approx([1.0, 1 / 3])


def test_a_padded_batch_is_its_tasks_one_by_one():
    model = disturbed(network().double())
    tasks = [data(n=n) for n in (9, 4, 1)]
    together = Dataset.pad(tasks)
    trace = poutine.trace(model).get_trace(together)
    for t, one in enumerate(tasks):
        weights = {model.site(i): w[t] for i, w in enumerate(weights_of(trace, model))}
        alone = poutine.trace(poutine.condition(model, weights)).get_trace(one)
        outputs = trace.nodes["_RETURN"]["value"][t, : one.num_points]
        torch.testing.assert_close(outputs, alone.nodes["_RETURN"]["value"], rtol=0, atol=1e-12)
        scores = [tr.nodes["y"]["fn"].log_prob(d.y) for tr, d in ((trace, together), (alone, one))]
        torch.testing.assert_close(scores[0][t], scores[1], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("points", [0, 4])
def test_an_empty_data_set_scores_nothing_and_moves_nothing(points):
    model = network().double()
    d = data(2, n=points, mask=torch.zeros(2, points, dtype=torch.bool))
    trace = poutine.trace(model).get_trace(d)
    score = trace.nodes["y"]["fn"].log_prob(d.y)
    assert score.tolist() == [0.0, 0.0]
    if points:
        score.sum().backward()
        assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters())


def at(model, trace, x):
    with torch.no_grad(), pyro.plate("particles", 4, dim=-2):
        return poutine.replay(model, trace=trace)(Dataset(x))


@pytest.mark.parametrize("attention", [False, True])
def test_what_else_is_asked_matters_for_attention_alone(attention):
    """A network's predictions at a point are its own; an attention network's are not."""
    model = network() if attention else BayesianNetwork([2, 6, 6, 3])
    guide = BNNWeightGuide(model.double()).double()
    x = torch.randn(2, 3, 2, dtype=torch.float64)
    with torch.no_grad(), pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(guide).get_trace(data(2))
    moved = (at(model, trace, x)[..., :1, :] - at(model, trace, x[:, :1])).abs().amax((-1, -2))
    assert bool((moved > 1e-3).all()) if attention else float(moved.max()) < 1e-12
    # but their order does not, and a point that does not exist is not seen
    torch.testing.assert_close(at(model, trace, x.flip(1)).flip(2), at(model, trace, x), rtol=0, atol=1e-12)
    exists = torch.tensor([[True, False, False]] * 2)
    with torch.no_grad(), pyro.plate("particles", 4, dim=-2):
        masked = poutine.replay(model, trace=trace)(Dataset(x, mask=exists))[..., :1, :]
    torch.testing.assert_close(masked, at(model, trace, x[:, :1]), rtol=0, atol=1e-12)


def test_a_single_point_sees_its_own_value_alone():
    """Attention over one point is its value: neither queries nor keys matter."""
    model = network(1).double()
    d = data(2, n=1)
    trace = poutine.trace(model).get_trace(d)
    weights = {model.site(i): w for i, w in enumerate(weights_of(trace, model))}
    for i in (1, 2):
        weights[model.site(i)] = torch.randn_like(weights[model.site(i)])
    other = poutine.condition(model, weights)(d)
    torch.testing.assert_close(other, trace.nodes["_RETURN"]["value"], rtol=0, atol=1e-12)


# -- with a guide ------------------------------------------------------------------------------------------------------


def pair(**options):
    model = network(1, prior=LearnedGaussianPrior("unit"), likelihood=GaussianLikelihood(0.3, True), activation="tanh")
    return disturbed(model, 0.1).double(), BNNWeightGuide(model, hidden=[8], **options).double()


def test_the_guide_propagates_its_context_as_the_model_does():
    """With real targets and noise the head's conditional is the regression on what the model's own pass feeds it."""
    model, guide = pair(final_targets="real", final_noise="real", solver="primal")
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    d = data(2, mask=mask)
    trace = poutine.trace(guide).get_trace(d)
    inputs = {}

    def layer(index, features):
        inputs[index] = features
        w = trace.nodes[model.site(index)]["value"]
        return features @ w[..., :-1].mT + w[..., -1].unsqueeze(-2)

    model.propagate(d.x, layer, mask)
    assert sorted(inputs) == list(range(8))
    torch.testing.assert_close(inputs[1], inputs[3], rtol=0, atol=0)  # queries, keys and values read the same
    expected = guide.conditional(7, d, inputs[7], [])
    torch.testing.assert_close(trace.nodes[model.site(7)]["fn"].mean, expected.mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("points", [0, 4])
def test_an_empty_context_gives_the_prior(points):
    model, guide = pair()
    d = data(2, n=points, mask=torch.zeros(2, points, dtype=torch.bool))
    terms = make("elbo", num_particles=3).terms(model, guide, d)
    assert float(terms.kl.abs().max().detach()) < 1e-10


def test_gradients_of_the_guide_alone_reach_the_layer_norms():
    model, guide = pair()
    guide(data(2))["layer_7.weight"].square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.norms.parameters())
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in model.parameters()}


def test_gradients_reach_everything():
    model, guide = pair()
    make("pp-avi", num_particles=3).differentiable_loss(model, guide, data(2, n=10).split(5)).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("kind", [BNNWeightGuide, AmortisedMeanFieldGuide])
def test_every_objective_trains_it(name, kind):
    if name == "conditional-prior":
        options = {"local_reparameterization": False}
    else:
        options = {}
    model = BayesianAttentionNetwork(2, 3, width=4, num_blocks=1, num_heads=2, noise_scale=0.5)
    guide = kind(model, width=8)
    objective = make(name, num_particles=2, **options)
    batch = data(2, n=8, dtype=torch.float32).split(4)
    optimiser = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    trained = guide if name == "npe" else model.norms  # which trains no model
    before = [p.detach().clone() for p in trained.parameters()]
    for _ in range(3):
        optimiser.zero_grad()
        loss = objective.differentiable_loss(model, guide, batch)
        assert torch.isfinite(loss)
        loss.backward()
        optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))
    assert predict(model, guide, batch.context, batch.target.x, num_samples=5, seed=0).samples.shape == (5, 2, 4, 3)


def test_pyros_automatic_guide_takes_it():
    model = BayesianAttentionNetwork(2, 3, width=4, num_blocks=1, num_heads=2, noise_scale=0.5)
    d = data(n=5, dtype=torch.float32)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(d) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert predict(model, guide, d, d.x, num_samples=3).samples.shape == (3, 5, 3)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"^width: got 0; it must be at least 1$"),
        ({"num_blocks": 0}, r"^num_blocks: got 0; it must be at least 1$"),
        ({"num_heads": 0}, r"^num_heads: got 0; it must be at least 1$"),
        ({"dim_y": 0}, r"^dim_y: got 0; it must be at least 1$"),
        ({"width": 6, "num_heads": 4}, r"^width: got 6; attention needs a multiple of num_heads, 4$"),
        ({"activation": "cube"}, r"^activation: got 'cube'; it must be one of "),
        ({"likelihood": "poisson"}, r"^likelihood: got 'poisson'; "),
    ],
)
def test_bad_arguments_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        BayesianAttentionNetwork(**{"dim_x": 1, "dim_y": 1, **options})
    assert "\n" not in str(caught.value)


def test_what_needs_points_apart_is_refused():
    model = network(1)
    guide = BNNWeightGuide(model)
    with pytest.raises(ValueError, match=r"^chunk_size: got 5, but .* in a BayesianAttentionNetwork; it must be None$"):
        BNNWeightGuide(model, chunk_size=5)
    with pytest.raises(ValueError, match=r"^data: new points would .* in BayesianAttentionNetwork, so that portions"):
        OnlinePosterior.start(guide, data(2, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"^model: got BayesianAttentionNetwork, whose attention has no NumPyro twin$"):
        numpyro_twin(model)
    objective = make("elbo", local_reparameterization=True)
    d = data(2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^local_reparameterization: the points of this model attend to one another,"):
        objective.differentiable_loss(model, AmortisedMeanFieldGuide(model, width=8), d)
    assert torch.isfinite(objective.differentiable_loss(model, guide, d))  # whose weights are drawn in any case
