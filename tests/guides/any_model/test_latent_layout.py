"""The latents of any model as one vector: values, Jacobians and plates, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta

from guides import AmortisedMultivariateNormalGuide, AmortisedNormalGuide, FlowGuide
from guides.any_model.latent_layout import find_layout
from inference.objectives import make
from pp_models import Dataset


def every_kind(y):
    """Sites of every kind of support and event, inside and outside of two plates."""
    pyro.sample("scale", dist.HalfCauchy(torch.tensor(2.0, dtype=y.dtype)))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(4, dtype=y.dtype)))
    pyro.sample("matrix", dist.Normal(torch.zeros(2, 3, dtype=y.dtype), 1.0).to_event(2))
    with pyro.plate("rows", 3, dim=-2):
        pyro.sample("row", dist.Beta(torch.tensor(2.0, dtype=y.dtype), 2.0))
    with pyro.plate("columns", 2, dim=-1):
        column = pyro.sample("column", dist.Dirichlet(torch.ones(3, dtype=y.dtype)))
        with pyro.plate("rows again", 3, dim=-2):
            cell = pyro.sample("cell", dist.Gamma(torch.tensor(2.0, dtype=y.dtype), 1.0))
            pyro.sample("y", dist.Normal(cell + column[..., 0], 1.0), obs=y)


def prior_values(model, *args):
    trace = poutine.trace(model).get_trace(*args)
    return trace, {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}


def test_packing_is_undone_by_unpacking():
    y = torch.randn(3, 2, dtype=torch.float64)
    layout = find_layout(every_kind, (y,), {}, ())
    assert layout.nesting == 2 and layout.size == 1 + 3 + 6 + 3 + 4 + 6
    trace, values = prior_values(every_kind, y)
    values = {latent.name: values[latent.name] for latent in layout.latents}
    vector = layout.packed(values)
    assert vector.shape == (layout.size,)
    for name, (value, _) in layout.unpacked(vector).items():
        assert value.shape == trace.nodes[name]["value"].shape
        torch.testing.assert_close(value, values[name])
    # many vectors at once, to the left of the model's plates
    vectors = torch.randn(5, 1, 1, layout.size, dtype=torch.float64)
    unpacked = layout.unpacked(vectors)
    assert unpacked["cell"][0].shape == (5, 3, 2) and unpacked["simplex"][0].shape == (5, 1, 1, 4)
    torch.testing.assert_close(layout.packed({n: v for n, (v, _) in unpacked.items()}), vectors)


def test_the_density_that_a_change_of_variables_adds_is_that_of_the_jacobian():
    y = torch.randn(3, 2, dtype=torch.float64)
    layout = find_layout(every_kind, (y,), {}, ())
    vector = torch.randn(layout.size, dtype=torch.float64)

    def free(v):  # a simplex of k has k - 1 free numbers
        parts = []
        for latent in layout.latents:
            value = layout.unpacked(v)[latent.name][0]
            parts.append((value[..., :-1] if latent.name in ("simplex", "column") else value).reshape(-1))
        return torch.cat(parts)

    jacobian = torch.autograd.functional.jacobian(free, vector)
    added = sum(density.sum() for _, density in layout.unpacked(vector).values())
    torch.testing.assert_close(added, -torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("kind", [FlowGuide, AmortisedMultivariateNormalGuide])
def test_log_weights_of_a_guide_are_those_of_one_that_is_written_out(kind):
    y = torch.randn(3, 2, dtype=torch.float64)
    guide = kind(every_kind, 8, example=(y,), encoder=None)
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(y)
        trace = poutine.trace(poutine.replay(every_kind, trace=guide_trace)).get_trace(y)
        vector = guide_trace.nodes["unconstrained_latents"]["value"]
        log_q = guide.vector_distribution(y).log_prob(vector)
        log_q = log_q + sum(density.sum() for _, density in guide.layout.unpacked(vector).values())
        torch.testing.assert_close(guide_trace.log_prob_sum(), log_q)
        # given the latents alone, by the values of its own site
        latents = {latent.name: trace.nodes[latent.name]["value"] for latent in guide.layout.latents}
        torch.testing.assert_close(guide.auxiliary_values(latents)["unconstrained_latents"], vector)


@pytest.mark.parametrize("kind", [FlowGuide, AmortisedNormalGuide])
def test_particles_at_once_and_one_by_one_are_the_same_draws(kind):
    y = torch.randn(3, 2, dtype=torch.float64)
    guide = kind(every_kind, 8, example=(y,))
    means = []
    for vectorize in (True, False):
        objective = make("elbo", num_particles=400, vectorize_particles=vectorize)
        with torch.no_grad():
            terms = objective.terms(every_kind, guide, y, diagnostics=True)
        assert terms.log_weights.shape[0] == 400
        means.append((terms.log_weights.mean(), terms.log_weights.std() / 20))
    assert abs(means[0][0] - means[1][0]) < 4 * (means[0][1] ** 2 + means[1][1] ** 2).sqrt()


def images(x):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([z, z], -1), 1.0).to_event(1), obs=x)


def test_elements_of_a_named_plate_are_data_sets():
    guide = FlowGuide(images, 8, example=(torch.randn(5, 4),), plates="images")
    assert guide.layout.size == 2
    assert guide(torch.randn(7, 4))["z"].shape == (7, 2)
    x = torch.randn(6, 4)
    torch.testing.assert_close(guide.vector_distribution(x[:3]).mean, guide.vector_distribution(x).mean[:3])
    terms = make("iwae", num_particles=3).terms(images, guide, x)
    assert terms.bound.shape == (6,)  # a bound for each image


def test_the_first_call_sets_a_guide_up_and_an_optimizer_waits_for_it():
    guide = AmortisedNormalGuide(images, 8, plates=["images"])
    with pytest.raises(ValueError, match=r"it has no parameters before it has seen the model"):
        torch.optim.Adam(guide.parameters())
    svi = pyro.infer.SVI(images, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    x = torch.randn(5, 4)
    svi.step(x)
    before = [p.detach().clone() for p in guide.parameters()]
    svi.step(x)
    assert len(before) > 2 and all(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def discrete(y):
    pyro.sample("k", dist.Categorical(torch.ones(3)))


def moving(y):
    a = pyro.sample("a", dist.Exponential(1.0))
    pyro.sample("b", dist.Uniform(0.0, a))


def branching(y):
    if pyro.sample("a", dist.Normal(0.0, 1.0)) > 0:
        pyro.sample("b", dist.Normal(0.0, 1.0))


def thinned(y):
    with pyro.plate("rows", 8, subsample_size=2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def hidden(y):
    with poutine.mask(mask=torch.tensor(False)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def shared(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (discrete, {}, r"^model: site 'k' is discrete; .*poutine.block\(model, hide=\['k'\]\)"),
        (moving, {}, r"^model: the support of site 'b' depends on other draws; write it as a draw of a fixed support"),
        (branching, {}, r"^model: site 'b' is in some of its runs alone"),
        (thinned, {}, r"^model: plate 'rows' of site 'z' is subsampled \(2 of 8\)"),
        (hidden, {}, r"^model: site 'z' is masked"),
        (lambda y: None, {}, r"^model: got one without a latent site"),
        (shared, {"plates": "rows"}, r"^plates: got 'rows', but site 'mu' is outside of it"),
        (shared, {"example": torch.ones(2)}, r"^example: got a Tensor; it must be a tuple of the model's arguments"),
        (shared, {"encoder": "set"}, r"^encoder: got 'set'; it must be 'auto' or a module or a function, or None$"),
    ],
)
def test_what_no_vector_can_stand_for_is_refused_in_one_line(model, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        AmortisedNormalGuide(model, 8, **{"example": (torch.ones(2),), **options})
    assert "\n" not in str(caught.value)


def test_one_posterior_for_many_data_sets_is_refused():
    from pp_models import BayesianNetwork

    guide = AmortisedNormalGuide(BayesianNetwork([1, 3, 1]), 8, encoder=None)
    assert guide(Dataset(torch.randn(4, 1), torch.randn(4, 1)))["layer_0.weight"].shape == (3, 2)
    with pytest.raises(ValueError, match=r"^encoder: got None, and the data are many data sets"):
        guide(Dataset(torch.randn(2, 4, 1), torch.randn(2, 4, 1)))


def test_other_numbers_of_data_are_refused():
    guide = AmortisedNormalGuide(images, 8, example=(torch.randn(5, 4),), plates="images")
    with pytest.raises(ValueError, match=r"^guide: got 3 numbers of data; the encoder was made for 4"):
        guide(torch.randn(5, 3))


def test_a_model_hidden_in_part_is_inferred_in_the_rest():
    def mixture(y):
        pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("k", dist.Categorical(torch.ones(2)))

    y = torch.randn(5)
    hidden = poutine.block(mixture, hide=["k"])
    assert set(AutoDelta(hidden)(y)) == set(AmortisedNormalGuide(hidden, 8, example=(y,))(y)) == {"mean"}
