"""KL schedules: what they weigh while they act, nothing once they have ended, bit for bit; and draws that are means."""

import copy

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from guides import AmortisedMeanFieldGuide, MCDropoutGuide, ModuleDropoutGuide
from inference import fit
from inference.objectives import REGISTRY, KLSchedule, make, remade
from pp_models import BayesianModule, BayesianNetwork, Dataset, tasks

WEIGHED = ("elbo", "tempered-elbo", "npvi", "conditional-prior", "pp-avi", "iwae", "renyi")


def pair():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    return model, AmortisedMeanFieldGuide(model, 8)


BATCH = tasks.gp("rbf", 3).batch(0)


def loss_and_gradients(objective, model, guide, batch=BATCH, seed=1):
    for p in (*model.parameters(), *guide.parameters()):
        p.grad = None
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(model, guide, batch)
    loss.backward()
    return [loss.detach(), *(p.grad for p in guide.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["warm-up", "cyclical", "none"])
@pytest.mark.parametrize("name", WEIGHED)
def test_at_its_end_the_objective_is_what_it_is_without(name, kind):
    model, guide = pair()
    free = {} if name in ("iwae", "renyi", "conditional-prior") else {"free_bits": 1000.0}
    noise = {} if name == "conditional-prior" else {"noise": "late"}
    schedule = KLSchedule(kind, steps=4, cycles=2, rising=1.0, **free, **noise)
    scheduled, plain = make(name, num_particles=3, kl_schedule=schedule), make(name, num_particles=3)
    expected = loss_and_gradients(plain, model, guide)
    seen = [loss_and_gradients(scheduled, model, guide) for _ in range(7)]
    if kind != "none" or free or noise:
        assert not torch.equal(seen[0][0], expected[0])
    for found in seen[4:]:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_by_hand():
    def betas(schedule, count):
        found = []
        for _ in range(count):
            schedule.advance()
            found.append(float(schedule.beta()))
        return found

    assert betas(KLSchedule("warm-up", 4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert betas(KLSchedule("cyclical", 8, cycles=2, rising=0.5), 9) == [0.5, 1, 1, 1, 0.5, 1, 1, 1, 1]
    assert betas(KLSchedule("none", 4), 2) == [1.0, 1.0]
    schedule = KLSchedule("warm-up", 4)
    with torch.no_grad():
        schedule.advance()  # an evaluation does not count
    assert float(schedule.losses) == 0


def test_a_half_weighed_kl_is_that_of_beta():
    model, guide = pair()
    for name in ("elbo", "npvi", "conditional-prior"):
        objective = make(name, num_particles=2, kl_schedule=KLSchedule("warm-up", 2))
        found = loss_and_gradients(objective, model, guide)
        expected = loss_and_gradients(make(name, num_particles=2, beta=0.5), model, guide)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_tempered_importance_bound_by_hand():
    model, guide = pair()
    objective = make("iwae", num_particles=4, kl_schedule=KLSchedule("warm-up", 2))
    torch.manual_seed(3)
    terms = objective.terms(model, guide, BATCH)
    torch.manual_seed(3)
    one = make("elbo", num_particles=4, estimator="stl").terms(model, guide, BATCH, diagnostics=True)
    torch.testing.assert_close(terms.log_weights, one.log_weights, rtol=1e-4, atol=1e-3)
    assert (terms.bound > make("iwae", num_particles=4).terms(model, guide, BATCH).bound - 1e3).all()
    # with one particle it is the expected log-likelihood less half the KL
    torch.manual_seed(3)
    single = make("iwae", num_particles=1, kl_schedule=KLSchedule("warm-up", 2)).terms(model, guide, BATCH)
    expected = single.log_likelihood + 0.5 * (single.log_weights[0] - single.log_likelihood)
    torch.testing.assert_close(single.bound.detach(), expected)


def test_free_nats_stop_the_gradient_of_a_small_kl():
    model, guide = pair()
    all_free = make("elbo", num_particles=2, kl_schedule=KLSchedule("none", 10, free_bits=1e6))
    found = loss_and_gradients(all_free, model, guide)
    without = loss_and_gradients(make("elbo", num_particles=2, beta=0.0), model, guide)
    torch.testing.assert_close(found[0], without[0] + 3 * 2 * 1e6)
    for a, b in zip(found[1:], without[1:], strict=True):
        torch.testing.assert_close(a, b)
    none_free = make("elbo", num_particles=2, kl_schedule=KLSchedule("none", 10, free_bits=1e-6))
    plain = loss_and_gradients(make("elbo", num_particles=2), model, guide)
    for a, b in zip(loss_and_gradients(none_free, model, guide), plain, strict=True):
        torch.testing.assert_close(a, b)


def dropout_module():
    torch.manual_seed(2)
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model = BayesianModule(module, likelihood="gaussian", noise_scale=0.3)
    return model, ModuleDropoutGuide(model, 0.2), Dataset(torch.randn(9, 1), torch.randn(9, 1))


def test_without_noise_the_gradient_is_that_of_the_mean_weights():
    model, guide, data = dropout_module()
    objective = make("elbo", num_particles=2, kl_schedule=KLSchedule("none", 5, noise="late"))
    found = loss_and_gradients(objective, model, guide, data)
    means = copy.deepcopy(guide)
    fit_only = model.outputs(data.x, {s: q.mean for s, q in zip(guide.sites, means.distributions(), strict=True)})
    likelihood = dist.Normal(fit_only, 0.3).log_prob(data.y).sum()
    kl = sum(kl_divergence(q, p).sum() for q, p in zip(means.distributions(), model.priors().values(), strict=True))
    loss = kl - likelihood
    loss.backward()
    torch.testing.assert_close(found[0], loss.detach())
    for a, b in zip(found[1:], (p.grad for p in means.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_early_dropout_draws_first_and_has_means_then():
    model, guide, data = dropout_module()
    objective = make("elbo", kl_schedule=KLSchedule("none", 2, noise="early"))
    losses = [loss_and_gradients(objective, model, guide, data, seed)[0] for seed in range(5)]
    assert (
        not torch.equal(losses[0], losses[1])
        and torch.equal(losses[2], losses[3])
        and torch.equal(losses[3], losses[4])
    )


def test_a_resumed_fit_goes_on_in_the_schedule(tmp_path):
    def run(folder, steps, resume=False):
        model, guide = pair()
        objective = make("elbo", kl_schedule=KLSchedule("cyclical", 10, cycles=2, noise="late", noise_steps=4))
        fit(model, guide, BATCH, objective, steps=steps, progress=False, checkpoint_dir=folder, resume=resume)
        return (folder / f"weights-{steps:08d}.safetensors").read_bytes()

    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 5)
    assert run(tmp_path / "parts", 9, resume=True) == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: make("npml", kl_schedule=s), r"^kl_schedule: got one, and 'npml' has no KL to weigh$"),
        (lambda s: make("dreg", kl_schedule=s), r"^kl_schedule: got one with doubly reparameterised"),
        (lambda s: make("rws", kl_schedule=s), r"^kl_schedule: got one, and 'rws' has no KL to weigh$"),
        (lambda s: make("tempered-elbo", warmup_steps=3, kl_schedule=s), r"^warmup_steps: got 3 beside kl_schedule;"),
        (
            lambda s: make("renyi", doubly_reparameterized=True, kl_schedule=s),
            r"^kl_schedule: got one with doubly repar",
        ),
        (
            lambda _: make("iwae", kl_schedule=KLSchedule(free_bits=1.0)),
            r"^kl_schedule: got free_bits = 1.0; importance",
        ),
        (
            lambda _: make("elbo", kl_reduction="mean", kl_schedule=KLSchedule(free_bits=1.0)),
            r"^kl_schedule: got free_",
        ),
        (
            lambda _: make("conditional-prior", kl_schedule=KLSchedule(noise="late")),
            r"^kl_schedule: got noise = 'late' with local_reparameterization",
        ),
        (lambda _: KLSchedule("linear"), r"^kind: got 'linear'; it must be "),
        (lambda _: make("elbo", kl_schedule=3), r"^kl_schedule: got 3; it must be a KLSchedule"),
    ],
)
def test_what_cannot_be_weighed_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(KLSchedule())


def test_a_guide_of_a_network_under_early_dropout_trains():
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    objective = make("elbo", kl_schedule=KLSchedule("warm-up", 5, noise="late"))
    result = fit(model, MCDropoutGuide(model, rate=0.2), BATCH, objective, steps=10, progress=False)
    assert not result.skipped and result.history[-1]["loss"] > 0


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("warm-up", {"kind": "warm-up", "steps": 70}),
        ("warm-up:1000", {"kind": "warm-up", "steps": 1_000}),
        ("cyclical:400:2", {"kind": "cyclical", "steps": 400, "cycles": 2}),
        ("free-bits:0.1", {"kind": "none", "steps": 70, "free_bits": 0.1}),
        ("cyclical+free-bits:2+late:30", {"kind": "cyclical", "steps": 70, "free_bits": 2.0, "noise": "late",
                                          "noise_steps": 30}),
        ("early:0", {"kind": "none", "steps": 70, "noise": "early", "noise_steps": 0}),
    ],
)  # fmt: skip
def test_a_schedule_in_one_word(text, options):
    found, expected = KLSchedule.parse(text, 70), KLSchedule(**options)
    for name in ("kind", "steps", "cycles", "rising", "free_bits", "noise", "noise_steps"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((t, rf"^kl_schedule: got '{t}'; it must be parts such as warm-up:1000, cyclical:1000:4")
          for t in ("", "linear", "warm-up:x", "warm-up:3:4", "free-bits", "cyclical:", "late")),
        ("warm-up:3+cyclical:4", r"^kl_schedule: got 'warm-up:3\+cyclical:4'; .* one of a kind, joined by \+"),
        ("warm-up:0", r"^kl_schedule: got 'warm-up:0', of which steps: got 0; it must be"),
        ("free-bits:-1", r"^kl_schedule: got 'free-bits:-1', of which free_bits: got -1.0; it must"),
        ("free-bits:nan", r"^kl_schedule: got 'free-bits:nan', of which free_bits: got nan; it must"),
    ],
)  # fmt: skip
def test_a_word_that_is_no_schedule_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        KLSchedule.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("tempered-elbo", "npe", "program")])
def test_an_objective_made_anew_is_the_same_but_for_what_was_named(name):
    first = make(name, num_particles=3, normalize=True)
    again = remade(first, num_particles=4)
    kept = {key: value for key, value in vars(first).items() if key not in ("num_particles", "_pairs", "module")}
    assert type(again) is type(first) and again.num_particles == 4
    assert {key: vars(again)[key] for key in kept} == kept
    with pytest.raises(ValueError, match=r"^kl_schedule: 'tempered-elbo' is made anew with it by "):
        remade(make("tempered-elbo"), kl_schedule=KLSchedule())
