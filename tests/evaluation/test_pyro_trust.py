"""A verdict on any Pyro pair: guides that are right pass, guides that are broken in known ways do not."""

import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal

import guidebook as gb
from evaluation.pyro_trust import short_nuts
from tests.normal_mean import exact, model

Y = torch.randn(20, generator=torch.Generator().manual_seed(0)) + 1.0


def normal_guide(shift=0.0, stretch=1.0):
    def guide(y):
        loc, scale = exact(y)
        pyro.sample("mean", dist.Normal(loc + shift * scale, stretch * scale))

    return guide


def judged(guide, *, of=model, data=Y, seconds=0.0, **options):
    return gb.verdict(of, guide, data, nuts_seconds=seconds, num_samples=400, **options)


@pytest.fixture(autouse=True)
def clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def finding(verdict, name):
    return next(f for f in verdict.findings if f.name == name)


def test_the_exact_posterior_is_trusted_and_agrees_with_nuts():
    state = torch.get_rng_state()
    found = judged(normal_guide(), seconds=60.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.level == "trust" and finding(found, "reference").passed is True
    assert found.numbers["efficiency"] > 0.999 and found.numbers["share_near_nuts"] == 1.0
    assert "never visits" not in found.reason
    alone = judged(normal_guide())
    assert alone.level == "trust" and "cannot see what the guide never visits" in alone.reason
    assert str(alone) == str(judged(normal_guide()))  # a seed decides


@pytest.mark.parametrize(
    ("shift", "stretch", "level"),
    [
        (0.0, 1.7, "trust"),
        (0.0, 3.0, "use with importance weights"),
        (0.0, 0.3, "do not trust"),
        (8.0, 1.0, "do not trust"),
    ],
)
def test_a_guide_that_is_off_by_so_much(shift, stretch, level):
    found = judged(normal_guide(shift, stretch))
    assert found.level == level
    if level == "do not trust":
        assert "'mean'" in found.reason
    if level == "use with importance weights":
        assert found.advice[0].startswith("resample(from_pyro_svi(model, guide, *args))")


def test_what_the_weights_cannot_see_the_reference_sees():
    """Two modes, one of them never visited: the weights look perfect."""

    def two(y):
        side = pyro.sample("side", dist.Normal(0.0, 1.0))
        pyro.factor("modes", torch.logaddexp(-50 * (side - 1) ** 2, -50 * (side + 0.7) ** 2) + 0 * y.sum())

    def one(y):
        pyro.sample("side", dist.Normal(0.99, 0.0995))

    assert judged(one, of=two).level == "trust"
    draws = {"side": torch.cat([torch.full((150,), 1.0), torch.full((150,), -0.7)]) + 0.1 * torch.randn(300)}
    with pytest.MonkeyPatch.context() as patch:  # a short NUTS may stay in one mode itself
        patch.setattr("evaluation.pyro_trust.short_nuts", lambda *a, **k: (draws, "as given", True))
        found = judged(one, of=two, seconds=1.0)
    assert found.level != "trust" and finding(found, "reference").passed is False


def test_a_point_mass_is_found_before_its_perfect_weights():
    guide = AutoDelta(model)
    guide(Y)
    found = judged(guide)
    assert found.level == "do not trust" and "point at 'mean'" in found.reason
    assert all(f.name != "importance weights" for f in found.findings)


def test_a_constrained_site_of_an_autoguide_is_no_point_mass():
    def positive(y):
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    guide = AutoNormal(positive)
    svi = SVI(positive, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(4))
    torch.manual_seed(0)
    losses = [svi.step(Y) for _ in range(600)]
    found = judged(guide, of=positive, losses=losses, seconds=60.0)
    assert found.level == "trust" and finding(found, "training").passed is True
    weights = finding(found, "importance weights")  # lighter tails than the posterior's: said, where NUTS agrees
    assert weights.passed or (not weights.weighs and "tails are too light" in found.reason)


def test_weights_by_datum_where_data_are_independent():
    def by_datum(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def right(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, math.sqrt(0.5)))

    def wrong_at_three(y):
        scale = torch.full((len(y),), math.sqrt(0.5))
        scale[3] = 0.05
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, scale))

    assert judged(right, of=by_datum).level == "trust"
    found = judged(wrong_at_three, of=by_datum)
    assert "element 3 of data" in finding(found, "importance weights").measured
    assert found.numbers["share_reliable"] == pytest.approx(0.95)


def test_a_loss_that_still_falls_and_one_that_has_settled():
    falling, flat = [100 - 0.1 * i for i in range(200)], [5 + 0.1 * (i % 7) for i in range(200)]
    found = judged(normal_guide(), losses=falling)
    assert found.level != "trust" and found.reason.startswith("The loss still falls.")
    assert judged(normal_guide(), losses=flat).level == "trust"
    assert judged(normal_guide(), losses=[{"loss": v} for v in flat]).level == "trust"
    assert finding(judged(normal_guide(), losses=flat[:5]), "training").passed is None


def test_a_users_own_check_weighs_and_replications_are_a_note():
    def largest(sites):
        return sites["y"].max()

    assert judged(normal_guide(), checks=[largest]).level == "trust"
    wild = torch.cat([Y, torch.tensor([12.0])])
    found = judged(normal_guide(), data=wild, checks=[largest])
    assert finding(found, "check largest").passed is False and found.level != "trust"
    assert finding(judged(normal_guide(), data=Y), "replications of y").weighs is False


@pytest.mark.parametrize("number", [15, 40])
def test_refits_find_a_family_that_is_too_narrow(number, monkeypatch):
    clock = iter(range(1000))  # of the seconds, not of this machine
    monkeypatch.setattr("evaluation.pyro_trust.time", SimpleNamespace(monotonic=lambda: next(clock)))

    def of(stretch):
        def refit(simulated):
            seen = {}

            def read(y):
                with torch.no_grad():
                    seen["y"] = pyro.poutine.trace(simulated).get_trace(y).nodes["y"]["value"]

            read(Y)
            loc, scale = exact(seen["y"])
            return lambda y: pyro.sample("mean", dist.Normal(loc, stretch * scale))

        return refit

    right = judged(normal_guide(), refit=of(1.0), refit_seconds=float(number))
    assert finding(right, "refits").passed is True and right.level == "trust"
    narrow = judged(normal_guide(), refit=of(0.1), refit_seconds=float(number))
    assert finding(narrow, "refits").passed is False and narrow.level != "trust"
    with pytest.raises(ValueError, match="^refit: it gave NoneType; it must give the guide it fitted"):
        judged(normal_guide(), refit=lambda m: None)


def test_no_reference_says_why():
    def discrete(y):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y)

    assert short_nuts(model, (Y,), {}, 1e-6)[1] == "not finished in 1e-06 s"
    found = judged(lambda y: pyro.sample("z", dist.Bernoulli(0.99)), of=discrete, seconds=5.0)
    assert finding(found, "reference").passed is None


def all_seen(y):
    pyro.sample("y", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judged(lambda y: None), r"^guide: it lacks site 'mean', which the model samples"),
        (lambda: judged(lambda y: None, of=lambda y: None), r"^model: it observes nothing with these arguments"),
        (lambda: judged(lambda y: None, of=all_seen), r"^model: it has no latent site with these arguments"),
        (lambda: judged(normal_guide(), checks=[3]), r"^checks: got \[3\]; it must be functions"),
        (lambda: judged(normal_guide(), seconds=-1.0), r"^nuts_seconds: got -1.0; it must"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_with_tasks_nothing_is_ignored():
    model, guide = gb.BayesianNetwork([1, 2, 1]), gb.guides.MCDropoutGuide(gb.BayesianNetwork([1, 2, 1]))
    batch = gb.tasks.gp("rbf", 2).batch(0)
    with pytest.raises(TypeError, match=r"^verdict: got knd; with tasks it takes verdict\(model, guide, tasks\)"):
        gb.verdict(model, guide, batch, knd="posterior")
    with pytest.raises(TypeError, match=r"^verdict: got 2 arguments; with tasks"):
        gb.verdict(model, guide, batch, batch)
    with pytest.raises(ValueError, match=r"^losses: got a list; it is for a model that is called with other"):
        gb.verdict(model, guide, batch, losses=[1.0])


def images(y):
    with pyro.plate("images", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def amortised(scale):
    """An amortised guide of the exact posterior, but for the factor on its scale."""
    guide = gb.guides.AmortisedNormalGuide(images, plates="images", example=(torch.zeros(8, 1),), encoder=lambda y: y)
    with torch.no_grad():
        centre, spread = guide.centre, guide.spread
        guide.head.weight.copy_(torch.stack([0.5 / spread, torch.zeros(1)]).reshape(2, 1))
        raw = torch.log(torch.expm1(scale * 0.5**0.5 / spread))
        guide.head.bias.copy_(torch.cat([-centre / spread, raw]))
    return guide


@pytest.mark.parametrize(("scale", "passed"), [(1.0, True), (0.4, False)])
def test_an_amortised_guide_answers_simulated_data(scale, passed):
    y = torch.randn(8, 1, generator=torch.Generator().manual_seed(1)) * 2**0.5
    verdict = gb.verdict(images, amortised(scale), y, num_samples=200, nuts_seconds=0)
    (finding,) = [f for f in verdict.findings if f.name == "simulations"]
    assert finding.passed == passed and not finding.weighs
    assert (verdict.level == "trust") == passed
