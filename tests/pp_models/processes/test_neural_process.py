"""The neural-process decoders: sites, shapes and what each path lets through."""

import pyro
import pytest
import torch

from pp_models import DataError, Dataset, NeuralProcess

KINDS = {
    "cnp": {"latent_dim": 0, "representation_dim": 8},
    "np": {"latent_dim": 4},
    "np+cnp": {"latent_dim": 4, "representation_dim": 8},
    "anp": {"latent_dim": 4, "representation_dim": 8, "attention": True},
}


def build(kind, **options):
    return NeuralProcess(2, 3, width=8, depth=3, **KINDS[kind], **options)


def trace(model, data, **values):
    return pyro.poutine.trace(pyro.condition(model, values)).get_trace(data).nodes


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_sites_and_shapes(kind, batch):
    model = build(kind)
    data = Dataset(torch.randn(*batch, 7, 2), torch.randn(*batch, 7, 3))
    shapes = {
        n: tuple(s["value"].shape)
        for n, s in trace(model, data).items()
        if s["type"] == "sample" and not n.startswith("tasks")
    }
    expected = {"z": (*batch, 4)} if kind != "cnp" else {}
    if kind in ("cnp", "np+cnp"):
        expected["representation"] = (*batch, 8)
    if kind == "anp":
        expected["memory"] = (*batch, 7, 11)
    assert shapes == expected | {"y": (*batch, 7, 3)}


@pytest.mark.parametrize(("likelihood", "outputs"), [("gaussian-head", 6), ("gaussian", 3), ("categorical", 3)])
def test_the_decoder_is_as_wide_as_its_likelihood_needs(likelihood, outputs):
    model = build("np", likelihood=likelihood)
    assert model.outputs == outputs
    site = trace(model, Dataset(torch.randn(5, 2)))["y"]
    assert site["value"].shape == ((5,) if likelihood == "categorical" else (5, 3))


def test_a_point_is_decoded_on_its_own():
    model = build("np+cnp").double()
    x = torch.randn(2, 6, 2).double()
    values = {"z": torch.randn(2, 4).double(), "representation": torch.randn(2, 8).double()}
    together = trace(model, Dataset(x), **values)["_RETURN"]["value"]
    alone = trace(model, Dataset(x[:, 3:4]), **values)["_RETURN"]["value"]
    torch.testing.assert_close(alone[:, 0], together[:, 3])


def test_every_path_reaches_the_outputs():
    model = build("np+cnp")
    values = {"z": torch.randn(4, requires_grad=True), "representation": torch.randn(8, requires_grad=True)}
    outputs = trace(model, Dataset(torch.randn(5, 2)), **values)["_RETURN"]["value"]
    grads = torch.autograd.grad(outputs.square().sum(), list(values.values()))
    assert all(float(g.abs().max()) > 0 for g in grads)


def test_attention_ignores_points_that_do_not_exist_and_their_order():
    model = build("anp").double()
    data = Dataset(torch.randn(5, 2).double())
    z = torch.randn(4).double()
    exists = torch.ones(6, 1).double()
    memory = torch.cat([torch.randn(6, 10).double(), exists], -1)
    plain = trace(model, data, z=z, memory=memory)["_RETURN"]["value"]
    noise = torch.cat([100 * torch.randn(3, 10).double(), torch.zeros(3, 1).double()], -1)
    padded = torch.cat([memory, noise])[torch.randperm(9)]
    torch.testing.assert_close(trace(model, data, z=z, memory=padded)["_RETURN"]["value"], plain)
    other = memory.clone()
    other[0, 3] += 1.0
    assert float((trace(model, data, z=z, memory=other)["_RETURN"]["value"] - plain).detach().abs().max()) > 1e-6
    empty = trace(model, data, z=z, memory=memory[:0])["_RETURN"]["value"]
    nothing = trace(model, data, z=z, memory=noise)["_RETURN"]["value"]
    torch.testing.assert_close(empty, nothing)


def test_the_deterministic_sites_cost_nothing():
    model = build("np+cnp")
    site = trace(model, Dataset(torch.randn(2, 5, 2)))["representation"]
    assert site["fn"].log_prob(torch.full((2, 8), 1e3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, r"^latent_dim, representation_dim: both are 0"),
        ({"attention": True}, r"^representation_dim: got 0; path='attention' needs"),
        ({"attention": True, "representation_dim": 12}, r"^representation_dim: got 12; .*num_heads"),
        ({"likelihood": "cauchy"}, r"^likelihood: got 'cauchy'"),
    ],
)
def test_bad_arguments_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        NeuralProcess(2, 3, **options)


def test_data_of_another_width_is_refused():
    with pytest.raises(DataError, match=r"^x: got input width 1; this model was built for 2$"):
        build("np")(Dataset(torch.randn(5, 1)))
    with pytest.raises(DataError, match=r"^y: got width 2; a network of 6 outputs"):
        build("np")(Dataset(torch.randn(5, 2), torch.randn(5, 2)))
