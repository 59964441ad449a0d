"""The network model: sites and shapes, parameters and their names, and its numbers against a plain network."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from guides import AmortisedMeanFieldGuide, MCDropoutGuide
from pp_models import BayesianNetwork, Dataset, GaussianLikelihood, LearnedGaussianPrior


def nodes(model, data):
    return pyro.poutine.trace(model).get_trace(data).nodes


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("representation", [0, 4])
def test_site_names_and_shapes(batch, representation):
    model = BayesianNetwork([2, 5, 6], likelihood="gaussian-head", representation_dim=representation)
    data = Dataset(torch.randn(*batch, 7, 2), torch.randn(*batch, 7, 3))
    found = nodes(model, data)
    latents = {n: tuple(s["value"].shape) for n, s in found.items() if s["type"] == "sample"}
    expected = {f"tasks{'_' + str(i) if i else ''}": (size,) for i, size in enumerate(reversed(batch))}
    expected |= {"layer_0.weight": (*batch, 5, 3 + representation), "layer_1.weight": (*batch, 6, 6)}
    expected |= {"representation": (*batch, representation)} if representation else {}
    expected |= {"y": (*batch, 7, 3)}
    assert latents == expected
    assert found["y"]["is_observed"] and found["y"]["fn"].event_shape == (7, 3)
    assert model.weight_shapes == [(5, 3 + representation), (6, 6)]
    frames = sorted((f.name, f.dim) for f in found["y"]["cond_indep_stack"])
    assert frames == [("tasks", -1), ("tasks_1", -2)][: len(batch)]


@pytest.mark.parametrize(
    ("likelihood", "shape"), [("gaussian", (3, 7, 4)), ("bernoulli", (3, 7, 4)), ("categorical", (3, 7))]
)
def test_y_is_sampled_where_it_is_unknown(likelihood, shape):
    model = BayesianNetwork([2, 4], likelihood=likelihood)
    site = nodes(model, Dataset(torch.randn(3, 7, 2)))["y"]
    assert site["value"].shape == shape
    assert not site["is_observed"]
    if likelihood == "bernoulli":
        assert set(site["value"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_outputs_are_those_of_a_plain_network(activation):
    model = BayesianNetwork([2, 5, 1], activation=activation).double()
    data = Dataset(torch.randn(3, 7, 2).double())
    trace = pyro.poutine.trace(model).get_trace(data)
    first, second = (trace.nodes[f"layer_{i}.weight"]["value"] for i in range(2))
    for t in range(3):
        hidden = torch.nn.functional.linear(data.x[t], first[t, :, :-1], first[t, :, -1])
        hidden = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}.get(
            activation, getattr(torch, activation, None)
        )(hidden)
        expected = torch.nn.functional.linear(hidden, second[t, :, :-1], second[t, :, -1])
        torch.testing.assert_close(trace.nodes["_RETURN"]["value"][t], expected)


def test_masked_points_are_not_scored():
    model = BayesianNetwork([1, 3, 1]).double()
    data = Dataset(torch.randn(2, 4, 1).double(), torch.randn(2, 4, 1).double())
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    masked = Dataset(data.x, data.y, mask)
    values = {n: s["value"] for n, s in nodes(model, data).items() if n.startswith("layer")}
    fixed = pyro.condition(model, values)
    scores = pyro.poutine.trace(fixed).get_trace(masked).nodes["y"]
    per_point = pyro.poutine.trace(fixed).get_trace(data).nodes["y"]["fn"].base_dist.log_prob(data.y).squeeze(-1)
    torch.testing.assert_close(scores["fn"].log_prob(masked.y), (per_point * mask).sum(-1))


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 0, dtype=torch.bool)])
def test_an_empty_data_set_scores_nothing(mask):
    model = BayesianNetwork([1, 3, 1])
    trace = pyro.poutine.trace(model).get_trace(Dataset(torch.zeros(2, 0, 1), torch.zeros(2, 0, 1), mask))
    assert trace.nodes["y"]["fn"].log_prob(trace.nodes["y"]["value"]).tolist() == [0.0, 0.0]


# -- parameters --------------------------------------------------------------------------------------------------------


def learning_pair():
    model = BayesianNetwork([1, 3, 1], prior=LearnedGaussianPrior("weight"), likelihood=GaussianLikelihood(0.3, True))
    return model, AmortisedMeanFieldGuide(model, width=8)


def test_svi_and_torch_see_the_same_parameters():
    model, guide = learning_pair()
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    own = {id(p) for m in (model, guide) for p in m.parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    before = [p.detach().clone() for p in model.parameters()]
    svi.step(data)
    assert {id(p) for p in pyro.get_param_store()._params.values()} == own
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_instances_never_share_names():
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    pairs = [learning_pair() for _ in range(2)]
    for model, guide in pairs:
        SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(data)
    count = sum(1 for m in pairs[0] for _ in m.parameters())
    assert len(pyro.get_param_store()) == 2 * count


def test_training_one_instance_leaves_another_alone():
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    pairs = [learning_pair() for _ in range(2)]
    before = [p.detach().clone() for m in pairs[1] for p in m.parameters()]
    svi = SVI(*pairs[0], pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(data)
    pairs[1][1](data)
    assert all(torch.equal(a, b) for a, b in zip(before, (p for m in pairs[1] for p in m.parameters()), strict=True))


def test_a_deep_copy_has_names_and_parameters_of_its_own():
    model, guide = learning_pair()
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(data)
    twins = copy.deepcopy(guide), copy.deepcopy(copy.deepcopy(guide))
    prefixes = {guide.parameter_prefix, *(twin.parameter_prefix for twin in twins)}
    assert len(prefixes) == 3
    assert twins[0].parameter_prefix == twins[0].parameter_prefix
    before = [p.detach().clone() for p in guide.parameters()]
    SVI(model, twins[0], pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(data)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, twins[0].parameters(), strict=True))


def test_frozen_parameters_stay():
    model, guide = learning_pair()
    for p in model.parameters():
        p.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(data)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_running_a_model_leaves_the_parameter_store_empty():
    model, guide = learning_pair()
    data = Dataset(torch.randn(2, 5, 1))
    model(data)
    guide(Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1)))
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesianNetwork([3]), r"^layer_sizes: got \[3\]; it must hold at least two positive widths$"),
        (lambda: BayesianNetwork([3, 0, 1]), r"^layer_sizes: got \[3, 0, 1\]; "),
        (
            lambda: BayesianNetwork([1, 1], activation="cube"),
            r"^activation: got 'cube'; it must be one of relu, tanh, ",
        ),
        (
            lambda: BayesianNetwork([1, 1], representation_dim=-1),
            r"^representation_dim: got -1; it must be at least 0$",
        ),
        (lambda: BayesianNetwork([1, 3], likelihood="gaussian-head"), r"^layer_sizes: the last width is 3; "),
        (lambda: BayesianNetwork([1, 1], likelihood="poisson"), r"^likelihood: got 'poisson'; "),
        (lambda: MCDropoutGuide(BayesianNetwork([1, 1]), rate=1.0), r"^rate: got 1.0; it must lie in \(0, 1\)$"),
    ],
)
def test_bad_arguments_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
