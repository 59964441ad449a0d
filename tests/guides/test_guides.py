"""One table of guides, one list of invariants that every one of them keeps, or is exempt from for a reason."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import guides
import pp_models
from inference import predict, sample_posterior
from inference.objectives import make
from inference.objectives.independent_plates import is_point_mass
from pp_models import DataError, Dataset
from pp_models.contract import Guide, Model
from tests.guides.guide_table import BASES, INVARIANTS, LISTS, ROWS, latent_sites

every_guide = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def moments(guide, d):
    """Mean and variance (0 for a point mass) of every latent site of one entry a task."""
    torch.manual_seed(5)  # where layers depend on draws of those below
    with torch.no_grad():
        sites = latent_sites(guide, d)
    return {n: (s["fn"].mean, s["fn"].variance) for n, s in sites.items() if n not in LISTS and has_moments(s["fn"])}


def has_moments(fn):
    try:
        return fn.variance is not None
    except NotImplementedError:  # a resample, a mask
        return False


def prediction(model, guide, d, x):
    with torch.no_grad():
        return predict(model.eval(), guide.eval(), d, x, weights="mean").mean


def inputs(row, *batch):
    return row.data(*batch, n=4).x


def padded(d, order=None):
    """The same points among four that do not exist, NaN where they can be, in another order."""
    order = torch.tensor([6, 0, 1, 7, 2, 3, 8, 4, 9, 5]) if order is None else order
    x = torch.cat([d.x, torch.full_like(d.x[..., :4, :], torch.nan)], -2)
    point = d.x.dim() - 2
    hole = d.y.narrow(point, 0, 4)
    hole = torch.full_like(hole, torch.nan) if d.y.dtype.is_floating_point else hole
    exists = torch.tensor([True] * 6 + [False] * 4).expand(*d.batch_shape, 10)
    return Dataset(x, torch.cat([d.y, hole], point), exists).points(order), order


def assert_same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_same_moments(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for site, (mean, variance) in found.items():
        assert_same(mean, expected[site][0], tolerance)
        assert_same(variance, expected[site][1], tolerance)


# -- the table ---------------------------------------------------------------------------------------------------------


def exported(room, base):
    found = (getattr(room, name) for name in room.__all__)
    return {c.__name__ for c in found if isinstance(c, type) and issubclass(c, base)} - BASES


def test_every_guide_and_every_model_that_is_exported_is_in_the_table():
    pairs = [row.make() for row in ROWS.values()]
    assert {type(guide).__name__ for _, guide in pairs} == exported(guides, Guide)
    assert {type(model).__name__ for model, _ in pairs} == exported(pp_models, Model)


def test_every_exemption_is_of_an_invariant_and_has_a_reason():
    for row in ROWS.values():
        assert set(row.exempt) <= set(INVARIANTS)
        assert all(
            len(reason) > 10 for reason in [*row.exempt.values(), *row.unreached.values()] if reason != "a point mass"
        )


# -- sites and shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@every_guide
def test_the_guide_has_the_sites_of_its_model(row, batch, dtype):
    model, guide = row.make(batch, dtype)
    d = row.data(*batch, dtype=dtype)
    trace = pyro.poutine.trace(guide).get_trace(d)
    latent = latent_sites(guide, d)
    replayed = latent_sites(pyro.poutine.replay(model, trace=trace), d)
    assert latent.keys() == replayed.keys()
    tasks = () if row.shared else batch
    for name, site in latent.items():
        fn = site["fn"]
        assert fn.batch_shape == tasks, name
        assert site["value"].shape == tasks + tuple(fn.event_shape)
        # weights on the simplex are drawn in float64, for float32 shortens the tails of a sparse Dirichlet
        wide = name == "mixture_weights" and not guide.point_mass
        assert site["value"].dtype == (torch.float64 if wide else dtype)
        assert replayed[name]["fn"].event_shape == fn.event_shape
        if name.startswith("layer"):
            assert tuple(fn.event_shape) == model.weight_shapes[int(name[6])]
        if "density" not in row.exempt and not (wide and is_point_mass(fn)):  # a Delta's is of its value's dtype
            assert fn.log_prob(site["value"]).dtype == dtype
    assert set(guide(d)) >= latent.keys()


@every_guide
def test_tasks_of_other_dimensions(row):
    model, guide = row.make((3,))
    if "one for all" in row.exempt:
        with pytest.raises(DataError, match=r"^data: got task dimensions \[2, 2\]; this guide .* \[3\]"):
            guide(row.data(2, 2))
        return
    d, x = row.data(2, 2), inputs(row, 2, 2)
    together = prediction(model, guide, d, x)
    for i in range(2):
        assert_same(prediction(model, guide, d[i], x[i]), together[i])
    assert_same(prediction(model, guide, d[1, 0], x[1, 0]), together[1, 0])


# -- what the data are -------------------------------------------------------------------------------------------------


@every_guide
def test_no_points_and_masked_points_are_the_same_empty_context(row):
    model, guide = row.make((2,))
    empty, masked = row.data(2, n=0), row.data(2, n=3, mask=torch.zeros(2, 3).bool())
    x = inputs(row, 2)
    found = prediction(model, guide, empty, x)
    assert_same(found, prediction(model, guide, masked, x))
    assert_same_moments(moments(guide, masked), moments(guide, empty))
    assert bool(torch.isfinite(found).all())
    if "one for all" not in row.exempt:  # nothing tells the tasks apart
        first, second = prediction(model, guide, empty, x[:1].expand(2, -1, -1))
        assert_same(first, second)


@every_guide
def test_an_empty_context_beside_a_full_one(row):
    model, guide = row.make((2,))
    d, x = row.data(2), inputs(row, 2)
    both = Dataset(d.x, d.y, torch.tensor([[True] * 6, [False] * 6]))
    found = prediction(model, guide, both, x)
    assert_same(found[0], prediction(model, guide, d, x)[0])
    assert_same(found[1], prediction(model, guide, row.data(2, n=0), x)[1])


@every_guide
def test_the_order_of_points_does_not_matter(row):
    model, guide = row.make()
    d, x = row.data(3), inputs(row, 3)
    order = torch.randperm(6)
    assert_same(prediction(model, guide, d, x), prediction(model, guide, d.points(order), x))
    draws, others = (sample_posterior(model, guide, each, 3, seed=2) for each in (d, d.points(order)))
    for name in draws:
        if name in LISTS and "seeded by the set" not in row.exempt:
            assert_same(others[name], draws[name][..., order, :])
    if "seeded by the set" in row.exempt:
        return
    assert_same_moments(moments(guide, d.points(order)), moments(guide, d))
    assert all(torch.allclose(draws[n], others[n], rtol=1e-6, atol=1e-9) for n in draws if n not in LISTS)


@every_guide
def test_padding_changes_nothing(row):
    model, guide = row.make()
    d, x = row.data(3), inputs(row, 3)
    wide, order = padded(d)
    assert_same(prediction(model, guide, wide, x), prediction(model, guide, d, x))
    if "seeded by the set" in row.exempt:
        return
    assert_same_moments(moments(guide, wide), moments(guide, d))
    draws, others = (sample_posterior(model, guide, each, 3, seed=2) for each in (d, wide))
    assert all(torch.allclose(draws[n], others[n], rtol=1e-6, atol=1e-9) for n in draws if n not in LISTS)
    there = order < 6
    for name in set(draws) & set(LISTS):
        assert_same(others[name][..., there, :], draws[name][..., order[there], :])


def densities(program, d, values):
    """Log-densities of latents, and of y, at given values: ``[*B]`` by site; a memory is flat or a point mass."""
    conditioned = pyro.poutine.condition(program, data=values)
    torch.manual_seed(0)
    nodes = pyro.poutine.trace(conditioned).get_trace(d).nodes
    # a point mass has a density of 0 or infinity, which rounding decides: its place is compared elsewhere
    sites = {n: s for n, s in nodes.items() if (n in values or n == "y") and not is_point_mass(s["fn"])}
    return {n: torch.as_tensor(s["fn"].log_prob(s["value"])) for n, s in sites.items() if n != "memory"}


@every_guide
def test_padding_changes_no_log_density(row):
    """Of the same latents under the guide, and of them and of y under the model."""
    model, guide = (module.eval() for module in row.make())
    d = row.data(3)
    wide, order = padded(d)
    sites = latent_sites(guide, d, auxiliary=True)
    values = {name: site["value"].detach() for name, site in sites.items()}
    moved = dict(values)
    for name in set(LISTS) & set(values):  # points stand in other places, beside some that do not exist
        moved[name] = torch.cat([values[name], torch.zeros_like(values[name][..., :4, :])], -2)[..., order, :]
    for program in (model,) if "density" in row.exempt else (model, guide):
        before, after = densities(program, d, values), densities(program, wide, moved)
        assert before.keys() == after.keys()
        for name in before:
            assert_same(after[name], before[name])


@every_guide
def test_what_the_context_says_matters(row):
    model, guide = row.make()
    d, x = row.data(3), inputs(row, 3)
    other = Dataset(d.x, 1 - d.y if row.y != "real" else d.y + 3.0)
    moved = float((prediction(model, guide, d, x) - prediction(model, guide, other, x)).abs().max())
    assert (moved == 0.0) if "reads its data" in row.exempt else (moved > 1e-4)


# -- draws -------------------------------------------------------------------------------------------------------------


@every_guide
def test_particles_are_different_draws_of_the_same_distribution(row):
    model, guide = row.make()
    guide.eval()
    d = row.data(3)
    draws = sample_posterior(model, guide, d, 4, seed=1)
    spread = []
    for value in draws.values():
        tasks = () if row.shared else (3,)
        assert value.shape[: 1 + len(tasks)] == (4, *tasks)
        spread.append(float((value - value[:1]).detach().abs().amax()))
    assert (max(spread) == 0.0) if "spread" in row.exempt else (max(spread) > 1e-6)
    assert all(torch.equal(v, draws[n]) for n, v in sample_posterior(model, guide, d, 4, seed=1).items())


@every_guide
def test_saving_and_loading_give_the_same_draws(row, tmp_path):
    model, guide = row.make()
    d = row.data(3)
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "weights.pt")
    torch.manual_seed(99)
    others = row.make()
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    for module, name in zip(others, ("model", "guide"), strict=True):
        module.load_state_dict(loaded[name])
    (a, b), x = (model.eval(), guide.eval()), inputs(row, 3)
    expected = predict(a, b, d, x, num_samples=5, seed=1).samples
    assert torch.equal(predict(others[0].eval(), others[1].eval(), d, x, num_samples=5, seed=1).samples, expected)


@every_guide
def test_a_deep_copy_draws_what_its_original_draws(row):
    _, guide = row.make()
    twin = copy.deepcopy(guide)
    d = row.data(3)
    found = []
    for draw in (guide, twin):
        torch.manual_seed(4)
        found.append(draw(d))
    assert all(torch.equal(found[0][site], found[1][site]) for site in found[0])
    assert guide.parameter_prefix != twin.parameter_prefix


# -- training ----------------------------------------------------------------------------------------------------------


@every_guide
def test_plain_svi_trains_it(row):
    model, guide = row.make(dtype=torch.float32)
    d = row.data(3, dtype=torch.float32)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    if "density" in row.exempt:
        with pytest.raises(ValueError, match="have no density; train it with npml"):
            svi.step(d)
        return
    trained = {
        f"{m.parameter_prefix}.{n}": p for m in (model, guide) for n, p in m.named_parameters() if p.requires_grad
    }
    before = {n: p.detach().clone() for n, p in trained.items()}
    losses = [svi.step(d) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    moved = {n.split(".", 1)[0] for n, p in trained.items() if not torch.equal(p, before[n])}
    if "trained" in row.exempt:
        assert moved == {model.parameter_prefix}
        return
    assert set(pyro.get_param_store().keys()) == set(trained)  # nothing in the store is another's
    assert moved == {n.split(".", 1)[0] for n in trained}


@pytest.mark.parametrize("which", ["elbo", "its own"])
@every_guide
def test_gradients_reach_every_parameter_that_is_used(row, which):
    model, guide = row.make()
    objective = make("elbo" if which == "elbo" else row.objective, num_particles=2)
    if which == "elbo" and "elbo" in row.exempt:
        with pytest.raises(ValueError, match=r"never calls the second encoder|have no density; train it with npml"):
            objective.differentiable_loss(model, guide, row.data(3))
        return
    d = row.data(3)
    loss = objective.differentiable_loss(model, guide, d if which == "elbo" else d.split(4))
    trained = {n: p for m in (model, guide) for n, p in m.named_parameters() if p.requires_grad}
    if not trained:
        assert not loss.requires_grad
        return
    loss.backward()
    # a query that meets zero keys, or a ReLU that no point passes, may have none: whole tensors do not at these seeds
    used = {n: p for n, p in trained.items() if "trained" not in row.exempt or not n.startswith("guide.")}
    dead = {
        n for n, p in used.items() if (p.grad is None or float(p.grad.abs().max()) == 0.0) and not n.endswith("empty")
    }
    assert {n for n in dead if not any(n.endswith(end) for end in row.unreached)} == set()
    assert all(bool(torch.isfinite(p.grad).all()) for p in trained.values() if p.grad is not None)


@every_guide
def test_the_code_of_an_empty_context_is_trained_by_empty_contexts(row):
    model, guide = row.make()
    empties = {n: p for n, p in guide.named_parameters() if n.endswith("empty") and "posterior_encoder" not in n}
    assert bool(empties) != ("empty code" in row.exempt)
    if not empties or "trained" in row.exempt:
        return
    batch = row.data(3).split(0)
    trace = pyro.poutine.trace(guide).get_trace(batch.context)
    outputs = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(batch.target)
    total = outputs.nodes["y"]["fn"].log_prob(batch.target.y).sum()
    for site in latent_sites(guide, batch.context).values():
        if not site["fn"].has_rsample:  # no gradient goes through a discrete draw; a score's does
            total = total + site["fn"].log_prob(site["value"]).sum()
    total.backward()
    reached = [n for n, p in empties.items() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert len(reached) == len(empties)
