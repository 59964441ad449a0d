"""The mixture family: its guides, what they refuse, heads, pruning, and the family in plain Pyro and in ArviZ."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import evaluation
from guides import (
    DeterministicGateGuide,
    DirichletMixtureGuide,
    DirichletPosteriorGuide,
    LogisticNormalGuide,
    StickBreakingGuide,
    UniformMixtureGuide,
    prune_experts,
)
from inference import fit, predict, sample_posterior
from inference.objectives import REGISTRY, make
from pp_models import (
    BayesianNetwork,
    DataError,
    Dataset,
    MixtureDensityNetwork,
    TaskBatch,
    effective_experts,
    tasks,
    unused_experts,
)

GUIDES = {
    "dirichlet": DirichletMixtureGuide,
    "posterior": DirichletPosteriorGuide,
    "logistic-normal": LogisticNormalGuide,
    "stick-breaking": StickBreakingGuide,
    "gate": DeterministicGateGuide,
    "uniform": UniformMixtureGuide,
}
WEIGHING = {"iw-em", "iwae", "dreg", "renyi", "rws", "chi2", "f-divergence", "log-variance", "program"}


def pair(name="dirichlet", experts="strict", num_experts=5, **options):
    torch.manual_seed(3)
    model = MixtureDensityNetwork(num_experts, 1, 1, experts, width=12, representation_dim=8, **options)
    return model, GUIDES[name](model, width=12)


def works(guide, objective):
    if guide in ("gate", "uniform"):
        return objective not in WEIGHING
    return guide != "posterior" or objective == "npvi"


def loss(model, guide, objective, batch):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.stack([objective.reduce(objective.terms(model, guide, batch)) for _ in range(20)]).mean()


@pytest.mark.parametrize("objective", REGISTRY)
@pytest.mark.parametrize("guide", GUIDES)
def test_ten_steps_lower_the_loss_or_are_refused_with_a_reason(guide, objective):
    model, built = pair(guide, "context")
    batch = tasks.gp("rbf", 4).batch(0)
    chosen = make(objective, num_particles=8, normalize=True)
    if objective == "npe":  # experts of the context read a memory, which has no prior to simulate from
        with pytest.raises(
            ValueError, match=r"^site 'memory': its prior is flat|^guide: it draws nothing|second encoder"
        ):
            chosen.terms(model, built, batch)
        return
    if not works(guide, objective):
        reason = "point mass" if guide in ("gate", "uniform") else "second encoder"
        with pytest.raises(ValueError, match=rf"^objective: '{objective}' .*{reason}"):
            chosen.terms(model, built, batch)
        return
    if objective == "r-drop":
        with pytest.raises(ValueError, match=r"^model: the KL between two predictions of site 'y' .* has no closed"):
            chosen.terms(model, built, batch)
        return
    before = loss(model, built, chosen, batch)
    result = fit(model, built, batch, chosen, steps=10, learning_rate=3e-3, max_grad_norm=10.0, progress=False)
    assert result.skipped == []
    assert loss(model, built, chosen, batch) < before


@pytest.mark.parametrize("experts", ["strict", "context"])
@pytest.mark.parametrize("guide", GUIDES)
def test_sites_shapes_and_empty_contexts(guide, experts):
    model, built = pair(guide, experts)
    x = torch.linspace(-1, 1, 7).unsqueeze(-1)
    padded = Dataset.pad([Dataset(torch.zeros(n, 1), torch.ones(n, 1)) for n in (0, 2, 4)])
    empty = Dataset(torch.zeros(3, 0, 1), torch.zeros(3, 0, 1))
    for context in (padded, empty):
        draws = sample_posterior(model, built, context, 6, seed=0)
        weights = draws["mixture_weights"]
        assert weights.shape == (6, 3, 5) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert ("memory" in draws) == (experts == "context")
        prediction = predict(model, built, context, x, 6, seed=0)
        assert prediction.samples.shape == (6, 3, 7, 1) and torch.isfinite(prediction.samples).all()
        assert prediction.log_prob(torch.zeros(3, 7, 1)).shape == (3, 7)
        assert torch.isfinite(prediction.joint_log_prob(torch.zeros(3, 7, 1))).all()
        mean = built.mean_weights(context)
        torch.testing.assert_close(mean.sum(-1), torch.ones_like(mean[..., 0]))
    # what is masked is not read: the task of two points is the same with and without padding
    alone = built.mean_weights(Dataset(torch.zeros(1, 2, 1), torch.ones(1, 2, 1)))
    torch.testing.assert_close(built.mean_weights(padded)[1:2], alone)


def test_more_evidence_can_be_told_from_less():
    """Equal points, other numbers of them: mean pooling alone would not see the difference."""
    _, guide = pair()
    few, many = (guide.concentration(Dataset(torch.zeros(1, n, 1), torch.ones(1, n, 1))) for n in (2, 40))
    assert (few - many).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        ("student-t-head", torch.randn(4, 6, 2)),
        ("bernoulli", torch.randint(0, 2, (4, 6, 2)).float()),
        ("categorical", torch.randint(0, 2, (4, 6))),
    ],
)
@pytest.mark.parametrize("experts", ["strict", "context"])
def test_heads(likelihood, y, experts):
    torch.manual_seed(0)
    model = MixtureDensityNetwork(3, 1, 2, experts, likelihood=likelihood, width=8, representation_dim=8)
    guide = DirichletMixtureGuide(model, width=8)
    data = Dataset(torch.randn(4, 6, 1), y)
    batch = data.split(2)
    for objective in (make("iw-em", num_particles=4, proposal="conjugate"), make("elbo")):
        before = loss(model, guide, objective, batch)
        fit(model, guide, batch, objective, steps=10, learning_rate=1e-2, progress=False)
        assert loss(model, guide, objective, batch) < before
    prediction = predict(model, guide, batch.context, batch.target.x, 5)
    assert prediction.samples.shape == (5, *batch.target.y.shape)
    assert prediction.log_prob(batch.target.y).shape == (4, 4)
    terms = make("elbo").terms(model, guide, batch)
    assert terms.points[0] == (6 if likelihood == "categorical" else 12)
    if likelihood == "categorical":
        assert prediction.mean.shape == (4, 4, 2)
        torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(4, 4))


@pytest.mark.parametrize("guide", ["dirichlet", "stick-breaking", "gate"])
def test_pruning_drops_what_is_not_used_and_nothing_else(guide):
    model, built = pair(guide, "context", num_experts=6)
    batch = tasks.gp("rbf", 8).batch(0)
    dead = [1, 4]
    with torch.no_grad():
        last = built.set_encoder.head[-1]
        rows = dead if guide != "stick-breaking" else [1, 4]
        last.bias[rows] = -12.0 if guide == "gate" else -30.0
        if guide == "dirichlet":
            built.min_concentration = 1e-6
        if guide == "stick-breaking":
            last.weight[rows] = 0
            built.min_concentration = 1e-6
            last.bias[[5 + i for i in rows]] = 5.0
    usage = built.mean_weights(batch.context)
    assert unused_experts(usage).tolist() == dead
    assert (effective_experts(usage) < 4.01).all()
    small, smaller_guide, kept = prune_experts(model, built, batch.context)
    assert kept == [0, 2, 3, 5] and small.num_experts == 4 and model.num_experts == 6
    y = batch.target.y
    torch.testing.assert_close(
        predict(small, smaller_guide, batch.context, batch.target.x, weights="mean").log_prob(y),
        predict(model, built, batch.context, batch.target.x, weights="mean").log_prob(y),
        atol=5e-3, rtol=1e-3,
    )  # fmt: skip
    before = [p.shape for p in model.parameters()]
    fit(small, smaller_guide, batch, "npml", steps=2, progress=False)
    assert [p.shape for p in model.parameters()] == before


def test_pruning_refusals():
    batch = tasks.gp("rbf", 4).batch(0)
    model, guide = pair()
    with pytest.raises(ValueError, match=r"^threshold: got 0.9, above the mean weight of every expert"):
        prune_experts(model, guide, batch.context, 0.9)
    with pytest.raises(ValueError, match=r"^threshold: got 0; it must lie in \(0, 1\)$"):
        prune_experts(model, guide, batch.context, 0)
    model, guide = pair("logistic-normal")
    with pytest.raises(ValueError, match=r"^guide: LogisticNormalGuide cannot drop experts one by one$"):
        prune_experts(model, guide, batch.context, 0.2)


def test_the_logistic_normal_by_monte_carlo():
    from guides.mixtures.logistic_normal_mixture import AdditiveLogisticNormal

    torch.manual_seed(0)
    fn = AdditiveLogisticNormal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.8]))
    z = fn.rsample((200_000,))
    torch.testing.assert_close(fn.mean, z.mean(0).float(), atol=1e-2, rtol=0)
    flat = pyro.distributions.Dirichlet(torch.ones(3, dtype=torch.float64))
    draws = flat.sample((400_000,))
    ratio = (fn.log_prob(draws).double() - flat.log_prob(draws)).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close((ratio.unsqueeze(-1) * draws).mean(0).float(), z.mean(0).float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("experts", ["strict", "context"])
def test_plain_pyro(experts):
    model, guide = pair("dirichlet", experts)
    batch = tasks.gp("rbf", 4).batch(0)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=Trace_ELBO(num_particles=2, vectorize_particles=False))
    before = [p.detach().clone() for p in guide.parameters()]
    svi.step(batch.full)
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    one = Dataset(batch.full.x[0], batch.full.y[0])
    if experts == "strict":  # the memory of context experts comes from our guides
        auto = AutoNormal(model)
        svi = SVI(model, auto, Adam({"lr": 3e-2}), loss=Trace_ELBO())
        losses = torch.tensor([svi.step(one) for _ in range(60)])
        assert losses[-10:].mean() < 0.9 * losses[:10].mean()


def test_arviz_gets_experts_as_a_dimension():
    model, guide = pair("dirichlet", "context")
    batch = tasks.gp("rbf", 3).batch(0)
    data = evaluation.to_arviz(model, guide, batch, num_samples=12)
    weights = data["posterior"]["mixture_weights"]
    assert weights.dims == ("chain", "draw", "task", "expert") and weights.shape == (1, 12, 3, 5)
    assert data["log_likelihood"]["y"].shape[:3] == (1, 12, 3)


def test_inner_steps_share_particles_and_weights(monkeypatch):
    """k updates of one batch with one E-step, and a resumed run ends with the same bytes."""
    model, guide = pair()
    batch = tasks.gp("rbf", 4).batch(0)
    objective = make("iw-em", num_particles=8, inner_steps=3, normalize=True)
    seen = []
    original = type(objective)._weights
    monkeypatch.setattr(type(objective), "_weights", lambda self, w: (seen.append(1), original(self, w))[1])
    with objective.one_e_step():
        torch.manual_seed(0)
        first = objective.terms(model, guide, batch)
        kept = objective._kept
        drawn = kept.drawn.nodes["mixture_weights"]["value"]
        second = objective.terms(model, guide, batch)
        assert objective._kept is kept and objective._kept.drawn.nodes["mixture_weights"]["value"] is drawn
    torch.testing.assert_close(first.bound, second.bound)  # nothing moved in between
    assert len(seen) == 1
    seen.clear()
    result = fit(model, guide, batch, objective, steps=5, progress=False)
    assert len(seen) == 5 and result.steps == 5


def test_inner_steps_move_further_than_one_step():
    batch = tasks.branches(32).batch(0)
    ends = {}
    for k in (1, 4):
        model, guide = pair(num_experts=8)
        objective = make("iw-em", num_particles=16, inner_steps=k, normalize=True, proposal="conjugate")
        fit(model, guide, batch, objective, steps=60, learning_rate=2e-3, progress=False)
        ends[k] = loss(model, guide, make("iw-em", num_particles=64, normalize=True, proposal="conjugate"), batch)
    assert ends[4] < ends[1] - 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, r"^num_experts: got 0; it must be at least 1$"),
        ({"experts": "lenient"}, r"^experts: got 'lenient'; it must be one of context, conjugate, strict$"),
        ({"concentration": 0.0}, r"^concentration: got 0.0; it must be positive and finite$"),
        ({"spread": -1.0}, r"^spread: got -1.0; it must be positive and finite$"),
        ({"min_scale": 1.0}, r"^min_scale: got 1.0; it must lie in \[0, 1\)$"),
        ({"likelihood": "poisson"}, r"^likelihood: got 'poisson'; it must be one of"),
        ({"representation_dim": 6}, r"^representation_dim: got 6; attention needs a multiple of num_heads, 4$"),
    ],
)
def test_bad_models(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureDensityNetwork(**{"num_experts": 4, "dim_x": 1, "dim_y": 1, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: DirichletMixtureGuide(m, min_concentration=1.0),
            r"^min_concentration: got 1.0; it must lie in \(0, 1\): sparse weights need α below 1$",
        ),
        (
            lambda m: DirichletMixtureGuide(m, concentration_map="exp"),
            r"^concentration_map: got 'exp'; it must be one of softplus, mean-and-concentration, evidence$",
        ),
        (lambda m: StickBreakingGuide(m, min_concentration=0), r"^min_concentration: got 0; it must lie in \(0, 1\)$"),
        (lambda m: StickBreakingGuide(MixtureDensityNetwork(1)), r"^model: its num_experts is 1, .* at least 2"),
        (lambda m: LogisticNormalGuide(MixtureDensityNetwork(1)), r"^model: its num_experts is 1, .* at least 2"),
        (lambda m: DirichletMixtureGuide(m, pooling="max"), r"^pooling: got 'max'; it must be one of"),
        (
            lambda m: make("iw-em", min_ess=0),
            r"^min_ess: got 0; it must lie in \(0, 1\], a share of the particles, or None$",
        ),
        (lambda m: make("iw-em", inner_steps=0), r"^inner_steps: got 0; it must be at least 1$"),
        (
            lambda m: make("iw-em", inner_steps=2, vectorize_particles=False),
            r"^inner_steps: got 2; particles that are kept must be vectorised$",
        ),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call(MixtureDensityNetwork(4, 1, 1))


def test_bad_models_and_data_for_guides():
    network = BayesianNetwork([1, 4, 1])
    with pytest.raises(TypeError, match=r"^model: got BayesianNetwork; DirichletMixtureGuide is a guide for a Mixture"):
        DirichletMixtureGuide(network)
    model, guide = pair()
    with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
        predict(model, guide, Dataset(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1)), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"^guide: its weights are AdditiveLogisticNormal, which has no conjugate"):
        make("iw-em", proposal="conjugate").terms(*pair("logistic-normal"), tasks.gp("rbf", 2).batch(0))


def test_a_mean_and_concentration_map():
    torch.manual_seed(0)
    model = MixtureDensityNetwork(5, 1, 1)
    guide = DirichletMixtureGuide(model, width=8, concentration_map="mean-and-concentration")
    alpha = guide.concentration(tasks.gp("rbf", 3).batch(0).context)
    assert alpha.shape == (3, 5) and (alpha > 0.05).all()
    torch.testing.assert_close(alpha.sum(-1), torch.full((3,), 5.25), atol=1.0, rtol=0)


def test_tasks_of_a_batch_do_not_see_one_another():
    model, guide = pair("dirichlet", "context")
    batch = tasks.gp("rbf", 3).batch(0)
    together = predict(model, guide, batch.context, batch.target.x, weights="mean").mean
    for t in range(3):
        one = TaskBatch(batch.context[t : t + 1], batch.target[t : t + 1])
        alone = predict(model, guide, one.context, one.target.x, weights="mean").mean
        torch.testing.assert_close(alone[0], together[t], atol=1e-5, rtol=1e-5)
