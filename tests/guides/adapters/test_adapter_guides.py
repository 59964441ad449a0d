"""One table of guides over one adapted model, one list of what each of them keeps."""

import copy
import math

import pyro
import pytest
import torch
from peft import get_peft_model
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import evaluation
from guides import (
    AdapterMeanFieldGuide,
    AmortisedMeanFieldGuide,
    LaplaceAdapterGuide,
    MCDropoutAdapterGuide,
    PointAdapterGuide,
    RankwiseGuide,
)
from guides.adapters.lrvd_families import family_kl
from guides.adapters.lrvd_layers import kl_divergence, rank_log_alpha
from guides.adapters.lrvd_peft import LrvdConfig
from guides.adapters.lrvd_saving import lrvd_load
from inference import fit, predict, prune_ranks, sample_posterior
from inference.objectives import TaskELBO, TemperedELBO
from pp_models import BayesianNetwork, Dataset, LowRankAdapted, log_uniform_kl
from pp_models.adapters.tempering import Tempering
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, tiny_gpt2, token_ids

#: name -> guide of a model, and the sites it has beside ``rank_scale``
GUIDES = {
    "rank": (RankwiseGuide, ()),
    "shared_sigma": (lambda m: RankwiseGuide(m, "shared_sigma"), ("lora_A", "lora_B")),
    "asym": (lambda m: RankwiseGuide(m, "asym"), ("lora_A",)),
    "weight_tied": (lambda m: RankwiseGuide(m, "weight_tied"), ("lora_A", "lora_B")),
    "untied": (lambda m: RankwiseGuide(m, "untied"), ("lora_A", "lora_B")),
    "mean-field": (AdapterMeanFieldGuide, ("lora_A",)),
    "laplace": (LaplaceAdapterGuide, ("lora_A", "lora_B")),
    "laplace kronecker": (lambda m: LaplaceAdapterGuide(m, structure="kronecker"), ("lora_A", "lora_B")),
    "dropout": (MCDropoutAdapterGuide, ("input_mask",)),
    "rank dropout": (lambda m: MCDropoutAdapterGuide(m, where="rank"), ()),
    "point": (PointAdapterGuide, ()),
}
every_guide = pytest.mark.parametrize("name", GUIDES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def adapted(**options):
    """Weights that matter, so that noise on them shows."""
    model = LowRankAdapted(network(), ["0", "2"], rank=4, **options)
    with torch.no_grad():
        for module in model.rank_modules().values():
            nn.init.normal_(module.lora_B, std=0.3)
    return model


def make(name, **options):
    model = adapted(**options)
    return model, GUIDES[name][0](model)


def data(*batch, n=12):
    return Dataset(torch.randn(*batch, n, 5), torch.randint(0, 3, (*batch, n)))


def ready(name):
    """A pair whose draws are not the mean (but for the point mass)."""
    model, guide = make(name)
    if name.startswith("laplace"):
        guide.fit_curvature(data())
    return model.eval(), guide.eval()


# -- every guide -------------------------------------------------------------------------------------------------------


@every_guide
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TaskELBO])
def test_plain_svi_trains_it(name, elbo):
    model, guide = make(name)
    d = data()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    assert all(math.isfinite(svi.step(d)) for _ in range(2))
    same = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert same == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert same == {f"backbone.{i}.base_layer.{name}" for i in (0, 2) for name in ("weight", "bias")}


@every_guide
def test_fit_predict_sample_and_arviz(name):
    model, guide = make(name)
    d = data()
    result = fit(model, guide, d, "elbo", steps=3, log_every=1, progress=False)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    if name.startswith("laplace"):
        guide.fit_curvature(d)
    for batch in ((), (2,), (2, 3)):
        d = data(*batch)
        prediction = predict(model, guide, d, d.x, num_samples=4, seed=0)
        assert prediction.samples.shape == (4, *batch, 12)
        torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(*batch, 12))
        draws = sample_posterior(model, guide, d, num_samples=6)
        assert {n.rpartition(".")[2] for n in draws} == {"rank_scale", *GUIDES[name][1]}
        assert draws["0.rank_scale"].shape == (6, 4)
    idata = evaluation.to_arviz(model, guide, data(2), num_samples=6, seed=0)
    assert idata["posterior"]["2.rank_scale"].dims == ("chain", "draw", "2.rank")
    assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "task", "point")
    assert idata["log_likelihood"]["y"].shape == (1, 6, 2, 12)


@every_guide
def test_a_draw_is_one_function_and_draws_differ(name):
    model, guide = ready(name)
    x = torch.randn(1, 5).expand(6, 5)
    prediction = predict(model, guide, data(), x, num_samples=5, seed=0).function_samples
    assert float((prediction - prediction[:, :1]).abs().max()) < 1e-6
    spread = float(prediction.std(0).max())
    assert spread == 0.0 if name == "point" else spread > 1e-4


@every_guide
def test_folded_draws_are_those_run_one_by_one(name):
    model, guide = ready(name)
    d = data(2)
    folded = predict(model, guide, d, d.x, num_samples=5, seed=0).function_samples
    model.fold_draws = False
    torch.testing.assert_close(predict(model, guide, d, d.x, num_samples=5, seed=0).function_samples, folded)


@every_guide
def test_the_posterior_mean_of_every_site_is_plain_lora(name):
    model, guide = ready(name)
    d = data()
    found = predict(model, guide, d, d.x, weights="mean").mean
    with torch.no_grad():
        torch.testing.assert_close(found, model.outputs(d.x).softmax(-1))


@every_guide
def test_vectorised_particles_and_pyros_predictive(name):
    model, guide = ready(name)
    d = data()
    terms = TaskELBO(num_particles=5).terms(model, guide, d)
    assert terms.bound.shape == () and bool(torch.isfinite(terms.bound))
    found = Predictive(model, guide=guide, num_samples=3)(d.without_y())
    assert found["y"].shape == (3, 12)
    assert found["0.rank_scale"].reshape(3, -1).shape == (3, 4)


@every_guide
def test_a_pair_is_copied_and_saved(name, tmp_path):
    model, guide = ready(name)
    d = data()
    expected = predict(model, guide, d, d.x, num_samples=4, seed=1).samples
    twin_model, twin = copy.deepcopy((model, guide))
    assert torch.equal(predict(twin_model, twin, d, d.x, num_samples=4, seed=1).samples, expected)
    assert twin.model is twin_model
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    other_model, other = make(name)
    other_model.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["guide"])
    assert torch.equal(predict(other_model.eval(), other.eval(), d, d.x, num_samples=4, seed=1).samples, expected)


@every_guide
def test_it_refuses_another_model(name):
    with pytest.raises(TypeError, match=r"^model: got BayesianNetwork; \w+Guide is a guide for a LowRankAdapted$"):
        GUIDES[name][0](BayesianNetwork([1, 2, 1]))


# -- the bound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "temperature", "kappa"), [("rank", 1.0, 1.0), ("weights", 0.5, 0.5)])
def test_the_loss_is_that_of_the_formula(count, temperature, kappa):
    model, guide = make("rank")
    objective = TemperedELBO(kl_count=count, temperature=temperature, num_data=60)
    d = data()
    with torch.no_grad():
        for level in guide.levels:
            nn.init.normal_(level["log_alpha"])
    torch.manual_seed(3)
    found = objective.loss(model, guide, d)
    torch.manual_seed(3)
    z = {site: value.detach() for site, value in guide(d).items()}
    x = d.x
    for index, path in ((0, "0"), (2, "2")):
        layer = model.backbone[index]
        update = (x @ layer.lora_A.T * z[f"{path}.rank_scale"]) @ layer.lora_B.T * layer.scaling
        x = layer.base_layer(x) + update
        x = torch.tanh(x) if index == 0 else x
    nll = nn.functional.cross_entropy(x, d.y, reduction="sum") * 60 / 12
    weights = {"0": 13, "2": 11} if count == "weights" else {"0": 1, "2": 1}
    kl = sum(weights[p] * log_uniform_kl(v).sum() for p, v in guide.rank_log_alpha().items())
    expected = float((nll + kappa * kl).detach())
    assert abs(found / expected - 1) < 1e-5
    terms = objective.terms(model, guide, d)
    assert abs(float(terms.kl.detach()) - float(kappa * kl)) < 1e-3


@pytest.mark.parametrize("family", ["rank", "shared_sigma"])
@pytest.mark.parametrize("prior", ["half-cauchy", "ard"])
def test_a_bound_under_a_proper_prior_is_a_bound(family, prior):
    """Closed form and Monte Carlo agree without a constant, and the closed form is what the formula says."""
    if family == "shared_sigma" and prior == "half-cauchy":
        with pytest.raises(ValueError, match=r"^family: got 'shared_sigma', whose multipliers are not random, so that"):
            RankwiseGuide(adapted(rank_prior=prior), family)
        return
    ours = {"rank_prior": prior} if family == "rank" else {"factor_prior": prior}
    model = adapted(**ours).double()
    guide = RankwiseGuide(model, family).double()
    with torch.no_grad():
        for level in guide.levels:
            nn.init.normal_(next(iter(level.values())), -1.5, 0.3)
    d = Dataset(torch.randn(12, 5).double(), torch.randint(0, 3, (12,)))
    found = []
    for elbo in (TraceMeanField_ELBO, Trace_ELBO):
        torch.manual_seed(0)
        found.append(elbo(num_particles=4_000, vectorize_particles=True, max_plate_nesting=0).loss(model, guide, d))
    # of point multipliers the one leaves their prior out, a constant, and the other does not
    left_out = 0.0 if family == "rank" else 8 * math.log(2 * math.log(1e6))
    assert abs(found[1] - found[0] - left_out) < (6.0 if family == "shared_sigma" else 3.0)
    expected = sum(
        family_kl(family, *m.factors(), dict(levels.items()), "rank" if family == "rank" else "weights", prior=prior)
        for m, levels in zip(model.rank_modules().values(), guide.levels, strict=True)
    )
    terms = TaskELBO().terms(model, guide, d)
    constant = 0.0 if family == "rank" else float(terms.kl.detach() - expected.detach())
    assert abs(float(terms.kl.detach()) - float(expected.detach()) - constant) < 1e-9
    (slope,) = torch.autograd.grad(terms.kl, [next(iter(guide.levels[0].values()))])
    (by_formula,) = torch.autograd.grad(expected, [next(iter(guide.levels[0].values()))])
    torch.testing.assert_close(slope, by_formula, rtol=1e-5, atol=1e-6)


def test_ard_scales_follow_the_guide_in_training_are_saved_and_pruned():
    model = adapted(rank_prior="ard", factor_prior="ard")
    guide = RankwiseGuide(model, init_log_alpha=0.0)
    d = data()
    guide(d)
    torch.testing.assert_close(model.ard_scale("0.rank_scale"), torch.full((4,), 2**0.5))
    with torch.no_grad():
        guide.levels[0]["log_alpha"].copy_(torch.tensor([-3.0, 5.0, -2.0, 6.0]))
    guide.eval()(d)
    torch.testing.assert_close(model.ard_scale("0.rank_scale"), torch.full((4,), 2**0.5))
    guide.train()(d)
    other = adapted(rank_prior="ard", factor_prior="ard")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.ard_scale("0.rank_scale"), model.ard_scale("0.rank_scale"))
    assert prune_ranks(model, guide=guide).kept == {"0": 2, "2": 4}
    assert {n: tuple(p.shape) for n, p in model.ard_scales.items() if n.startswith("0")} == {
        "0:rank_scale": (2,),
        "0:lora_A": (2, 5),
        "0:lora_B": (8, 2),
    }
    torch.testing.assert_close(model.ard_scale("0.rank_scale").square(), 1 + torch.tensor([-3.0, -2.0]).exp())
    assert math.isfinite(float(TaskELBO(num_particles=3).loss(model, guide, d)))


def test_monte_carlo_differs_from_the_closed_form_by_the_constant_of_the_improper_prior():
    model, guide = make("rank")
    with torch.no_grad():
        for level in guide.levels:
            nn.init.constant_(level["log_alpha"], -2.0)
    d = data()
    found = []
    for elbo in (TraceMeanField_ELBO, Trace_ELBO):
        torch.manual_seed(0)
        found.append(elbo(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0).loss(model, guide, d))
    # of each of 8 ranks: the logarithm of the prior's width, and what the closed form leaves out of q's entropy
    limit = -0.5 * (math.log(2) + float(torch.digamma(torch.tensor(0.5))))
    constant = math.log(2 * math.log(1e6)) - 0.5 * math.log(2 * math.pi * math.e) - limit
    assert abs((found[1] - found[0]) / 8 - constant) < 0.02


def test_minibatches_estimate_the_bound_on_all_points():
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    model, guide = make("point")
    model_guide, objective = guide, TemperedELBO(num_data=40)
    whole = objective.loss(model, guide, Dataset(x, y))
    parts = [objective.loss(model, guide, Dataset(x[i : i + 10], y[i : i + 10])) for i in range(0, 40, 10)]
    assert abs(sum(parts) / 4 / whole - 1) < 1e-5
    ranks, guide = make("rank")
    kls = [float(objective.terms(ranks, guide, Dataset(x[:n], y[:n])).kl.detach()) for n in (10, 40)]
    assert abs(kls[0] - kls[1]) < 1e-4  # once a data set, not once a batch
    mask = torch.arange(40) < 10  # points that do not exist are no data
    padded = Dataset(x, y, mask)
    assert abs(objective.loss(model, model_guide, padded) / parts[0] - 1) < 1e-5


def test_the_warm_up_counts_the_losses_that_are_trained_on():
    model, guide = make("rank")
    objective = TemperedELBO(warmup_steps=4)
    d = data()
    objective.loss(model, guide, d)  # without gradients: no step
    kls = []
    for _ in range(6):
        kls.append(float(objective.terms(model, guide, d).kl.detach()))
    torch.testing.assert_close(torch.tensor(kls) / kls[-1], torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]))


def test_the_weight_of_the_kl_in_one_number():
    assert Tempering(temperature=3.0).kappa() == 3.0
    assert abs(Tempering(1000, "weights", 1e-6).kappa(13) - 0.013) < 1e-9
    with pytest.warns(
        DeprecationWarning, match=r"^kl_count: the weight of the KL belongs to the objective; give it to"
    ):
        counted = adapted(kl_count="weights")
    assert counted.effective_temperature() == 12.0  # 13 and 11 weights a rank
    assert adapted().effective_temperature() == 1.0


@every_guide
@pytest.mark.parametrize("count", ["rank", "weights"])
def test_what_the_model_was_told_before_is_what_the_objective_does(name, count):
    """The deprecated arguments and the objective give the same bound, prior and posterior weighed alike."""
    options = {"kl_count": count, "temperature": 3.0, "num_data": 60, "warmup_steps": 4}
    with pytest.warns(DeprecationWarning):
        old, its_guide = make(name, **options)
    new, guide = make(name)
    guide.load_state_dict(its_guide.state_dict())
    new.load_state_dict(old.state_dict())
    objective, d = TemperedELBO(**options), data()
    for _ in range(2):
        torch.manual_seed(5)
        before = TaskELBO().terms(old, its_guide, d)
        torch.manual_seed(5)
        after = objective.terms(new, guide, d)
        torch.testing.assert_close(after.bound, before.bound, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(after.kl, before.kl, rtol=1e-5, atol=1e-4)
    if name == "rank":
        with pytest.raises(ValueError, match=r"^model: its KL is weighed already, by arguments of LowRankAdapted; "):
            objective.terms(old, its_guide, d)


def test_a_model_of_any_kind_is_tempered():
    model = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    guide, d = AmortisedMeanFieldGuide(model, 8), Dataset(torch.rand(3, 5, 1), torch.randn(3, 5, 1))
    found = []
    for objective in (TaskELBO(), TemperedELBO(), TemperedELBO(temperature=0.25)):
        torch.manual_seed(0)
        found.append(objective.terms(model, guide, d))
    assert torch.equal(found[0].bound, found[1].bound)
    torch.testing.assert_close(found[2].kl, 0.25 * found[0].kl)
    torch.testing.assert_close(found[2].log_likelihood, found[0].log_likelihood)


def test_a_warm_up_goes_on_where_a_killed_fit_stopped(tmp_path):
    def run(folder, **options):
        model, guide = make("rank")
        objective = TemperedELBO(warmup_steps=6)
        fit(model, guide, data(), objective, 8, checkpoint_dir=folder, checkpoint_every=4, log_every=1,
            progress=False, device="cpu", **options)  # fmt: skip

    run(tmp_path / "whole")

    def kill(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", callbacks=[kill])
    run(tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / k / "weights-00000008.safetensors").read_bytes() for k in ("whole", "parts"))
    assert whole == parts


def test_mean_field_with_blobs_prior():
    model = adapted(factor_prior=0.2)
    guide = AdapterMeanFieldGuide(model)
    found = float(TaskELBO().terms(model, guide, data()).kl.detach())
    expected = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(m.lora_A, r.square() + 1e-8), torch.distributions.Normal(0.0, 0.2)
        ).sum()
        for m, r in zip(model.rank_modules().values(), guide.roots, strict=True)
    )
    assert abs(found / float(expected.detach()) - 1) < 1e-4


def test_lora_dropout_is_on_in_training_alone_and_base_dropout_only_if_asked_for():
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model = LowRankAdapted(net, ["0"], rank=2, lora_dropout=0.5)
    assert model.backbone[0].lora_dropout.training and not net[1].training
    assert not model.eval().backbone[0].lora_dropout.training
    assert LowRankAdapted(copy.deepcopy(network()), ["0"], base_dropout=True).train().backbone.training


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_a_transformer_is_adapted_without_peft():
    model = LowRankAdapted(tiny_bert(), BERT_TARGETS, rank=2, trainable=["classifier"])
    guide = RankwiseGuide(model)
    assert "bert.encoder.layer.0.attention.self.query" in model.rank_modules()
    ids = token_ids(6)
    d = Dataset(ids.float(), torch.tensor([0, 1, 0, 1, 0, 1]))
    with torch.no_grad():
        torch.testing.assert_close(model.outputs(d.x), tiny_bert()(ids).logits)
    losses = [row["loss"] for row in fit(model, guide, d, steps=30, log_every=10, progress=False).history]
    assert losses[-1] < losses[0]
    assert predict(model, guide, d, d.x, num_samples=3).mean.shape == (6, 2)


def test_conv1d_layers_and_a_call_of_one_s_own():
    def last_token(backbone, x):
        return backbone(input_ids=x.long()).logits[:, -1, :3]

    model = LowRankAdapted(tiny_gpt2(), ["c_attn"], rank=2, call=last_token)
    ids = token_ids(4)
    d = Dataset(ids.float(), torch.tensor([0, 1, 2, 1]))
    with torch.no_grad():
        torch.testing.assert_close(model.outputs(d.x), tiny_gpt2()(ids).logits[:, -1, :3])
    assert math.isfinite(SVI(model, RankwiseGuide(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(d))


@pytest.mark.parametrize("family", ["rank", "shared_sigma"])
def test_a_peft_model_is_a_pyro_model_and_what_it_learns_is_saved(family, tmp_path):
    peft_model = get_peft_model(tiny_bert(), LrvdConfig(r=3, family=family, target_modules=BERT_TARGETS))
    model = LowRankAdapted(peft_model)
    guide = RankwiseGuide(model, family)
    d = Dataset(token_ids(6).float(), torch.tensor([0, 1, 0, 1, 0, 1]))
    start = rank_log_alpha(peft_model)
    assert all(torch.equal(v, start[p]) for p, v in guide.rank_log_alpha().items())
    fit(model, guide, d, steps=4, learning_rate=1e-2, progress=False)
    names = set(sample_posterior(model, guide, d, num_samples=2))
    assert "bert.encoder.layer.0.attention.self.query.rank_scale" in names
    guide.store()
    peft_model.save_pretrained(tmp_path)
    loaded = lrvd_load(tiny_bert(), tmp_path)
    assert all(torch.equal(v, guide.rank_log_alpha()[p]) for p, v in rank_log_alpha(loaded).items())
    assert not all(torch.equal(v, start[p]) for p, v in rank_log_alpha(loaded).items())
    assert math.isfinite(float(kl_divergence(loaded).detach()))


# -- bad input, in one line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["1"]}, r"^targets: no Linear or Conv1D layer of Sequential is named '1'; it has 0, 2$"),
        ({"targets": ["0", "9"]}, r"^targets: no Linear or Conv1D layer of Sequential is named '9'; it has 0, 2$"),
        (
            {"targets": "layer.*"},
            r"^targets: no Linear or Conv1D layer of Sequential is named 'layer.\*'; it has 0, 2$",
        ),
        (
            {"targets": None},
            r"^targets: got None, but the backbone has no LRVD layer; name the linear layers to adapt$",
        ),
        ({"rank": 0}, r"^rank: got 0; it must be at least 1$"),
        ({"kl_count": "layer"}, r"^kl_count: got 'layer'; it must be 'rank' or 'weights'$"),
        ({"temperature": -1.0}, r"^temperature: got -1.0; it must be finite and not negative$"),
        (
            {"kl_weight": "map"},
            r"^kl_weight: got 'map'; it must be 'elbo' or a number that is finite and not negative$",
        ),
        ({"kl_weight": 1e-6}, r"^kl_weight: got 1e-06, which weighs a mean over the data; give num_data too$"),
        ({"num_data": 0}, r"^num_data: got 0; it must be at least 1, or None$"),
        ({"warmup_steps": -1}, r"^warmup_steps: got -1; it must be finite and not negative, or None$"),
        (
            {"factor_prior": "normal"},
            r"^factor_prior: got 'normal'; it must be 'log-uniform', 'ard' or a number that is pos",
        ),
        ({"rank_prior": "flat"}, r"^rank_prior: got 'flat'; it must be one of log-uniform, half-cauchy, ard$"),
        ({"lora_dropout": 1.0}, r"^lora_dropout: got 1.0; it must lie in \[0, 1\)$"),
        ({"trainable": ["head"]}, r"^trainable: Sequential has no module named 'head'$"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LowRankAdapted(network(), **{"targets": ["0"], **options})


def test_more_refusals():
    model = adapted()
    with pytest.raises(ValueError, match=r"^backbone: it is adapted already; pass targets=None for a peft model"):
        LowRankAdapted(model.backbone, ["0"])
    with pytest.raises(ValueError, match=r"^family: got 'rows'; it must be one of rank, "):
        RankwiseGuide(model, "rows")
    with pytest.raises(ValueError, match=r"^rate: got 1.0; it must lie in \(0, 1\)$"):
        MCDropoutAdapterGuide(model, rate=1.0)
    with pytest.raises(ValueError, match=r"^where: got 'output'; it must be 'input' or 'rank'$"):
        MCDropoutAdapterGuide(model, where="output")
    with pytest.raises(ValueError, match=r"^init_scale: got 0.0; it must be positive and finite$"):
        AdapterMeanFieldGuide(model, init_scale=0.0)
    with pytest.raises(ValueError, match=r"^prior_precision: got -1.0; it must be positive and finite$"):
        LaplaceAdapterGuide(model, prior_precision=-1.0)
    with pytest.raises(ValueError, match=r"^structure: got 'dense'; it must be 'diagonal' or 'kronecker'$"):
        LaplaceAdapterGuide(model, structure="dense")
    with pytest.raises(ValueError, match=r"^model: layer '0' is no peft layer of family 'rank' to store in$"):
        RankwiseGuide(model).store()


def test_all_linear_layers_by_name():
    model = LowRankAdapted(tiny_bert(), "all-linear", rank=1)
    assert len(model.rank_modules()) == 14
    assert len(LowRankAdapted(tiny_bert(), r".*layer\.1.*query", rank=1).rank_modules()) == 1
