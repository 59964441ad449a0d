"""NMDP's experiments on tasks, data and uncertainty at smoke scale, and the parts they share."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.experiments import nmdp_bimodal, nmdp_kernel_mix, nmdp_multi_output, nmdp_ood, reproduce
from evaluation.experiments.experiment import Workshop
from evaluation.experiments.nmdp_parts import Size, ceiling, description, mixture, objective, process, scores, train
from guides import ConjugateRefinement
from inference import predict
from pp_models import Dataset, tasks
from pp_models.tasks.regression_tables import RegressionTable
from pp_models.tasks.regression_tasks import RegressionTasks

pytestmark = pytest.mark.usefixtures("coarse_pictures")

TABLES = ("sarcos", "wq", "scm20d", "synthetic")
IMAGES = ("digits", "mnist", "cifar10-subset", "emnist", "svhn")
FIGURES = {
    "nmdp/active-context": {"queries"},
    "nmdp/ablations": {"ladder"},
    "nmdp/adaptation": {"training"},
    "nmdp/branches": {"ladder"},
    "nmdp/gp-mix": {"methods"},
    "nmdp/sweep": {"particles"},
    "nmdp/bimodal": {"densities", "comparison"},
    "nmdp/ood": {"auroc"},
    "nmdp/representation": {"probe", "picture"},
    "nmdp/representation-convcnp": {"probe", "picture"},
    **{f"nmdp/multi-output-{table}": {"errors"} for table in TABLES},
    **{f"nmdp/images-{images}": {"completions_nmdp", "completions_canp"} for images in IMAGES},
}
TINY = Size(2, 8, 3, 2, 2, 4, 6)


@pytest.mark.parametrize("name", FIGURES)
def test_an_experiment_at_smoke_scale_writes_its_files(out, recorded_files, name):
    outcome = reproduce(name, "smoke", out=out, progress=False)
    folder = out / f"{name}-smoke"
    pictures = {f"{stem}.png" for stem in FIGURES[name]}
    assert {"results.json", "table.csv", "report.html", *pictures} <= {p.name for p in folder.iterdir()}
    assert {p.name for p in folder.glob("*.png")} == pictures
    assert outcome.checks and not any(check.holds is False for check in outcome.checks)
    assert [c["holds"] for c in json.loads((folder / "results.json").read_text())["checks"]] == [
        check.holds for check in outcome.checks
    ]
    numbers = outcome.table.select_dtypes("number")
    if name in ("nmdp/ablations", "nmdp/branches", "nmdp/sweep"):  # effective sizes exist where weights do
        numbers = numbers.filter(regex="ll_|joint_")
    assert numbers.apply(lambda column: column.map(math.isfinite).all()).all()
    # every table says which experts, which floor
    text = " ".join(outcome.notes)
    assert "Experts:" in text and "Every scale is at least" in text


def test_experiments_on_kernels_share_their_fits(tmp_path):
    workshop = Workshop(tmp_path, progress=False)
    names = list(nmdp_kernel_mix.VARIANTS)
    pairs = nmdp_kernel_mix.fitted("random", "smoke", names, [0], workshop)
    fits = {path.name for path in (tmp_path / "fits/nmdp-mix-random-smoke").iterdir()}
    assert fits == {f"nmdp-{kind}-seed0" for kind in ("strict", "context", "context-set-transformer")}
    assert {name: pairs[name, 0][0].num_experts for name in names} == dict(zip(names, (6, 3, 3), strict=True))
    again = nmdp_kernel_mix.fitted("random", "smoke", nmdp_ood.NAMES, [0], workshop)
    for key, (model, _) in again.items():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pairs[key][0].parameters(), strict=True))


# -- parts -------------------------------------------------------------------------------------------------------------


def test_pairs_share_the_floor_and_the_widths():
    data = tasks.gp(batch_size=2, **tasks.TNP_COUNTS).batch(0)
    for name in ("CNP", "CANP", "NP", "ANP"):
        torch.manual_seed(0)
        model, guide = process(name, 1, 1, TINY, 0.3)()
        prediction = predict(model, guide, data.context, data.target.x, 2)
        assert float(prediction.likelihood.base_dist.scale.min()) >= 0.3
        assert objective(name, TINY) is not None
    for experts in ("strict", "context"):
        model, guide = mixture(1, 1, TINY, experts, 0.3, num_experts=5)()
        prediction = predict(model, guide, data.context, data.target.x, 2)
        assert model.num_experts == 5 and float(prediction.likelihood.experts.base_dist.scale.min()) >= 0.3
        assert float(prediction.log_prob(data.target.y).max()) <= ceiling(0.3) + 1e-5
    assert ceiling(0.1, 3) == pytest.approx(4.151, abs=1e-3)
    assert "strict" in description(TINY, "strict", 0.3) and "0.3" in description(TINY, "strict", 0.3)


def test_scores_are_closed_form_for_a_mixture_and_joint_over_draws():
    batch = tasks.gp(batch_size=3, num_context=(5, 5), num_target=(7, 7), max_points=None).batch(0)
    torch.manual_seed(0)
    pair = tuple(part.eval() for part in mixture(1, 1, TINY, "strict", 0.1)())
    found = scores(pair, [batch], 2000)
    model, guide = pair
    with torch.no_grad():
        weights = guide.mean_weights(batch.context)
        each = model.expert_log_likelihood(batch.target)
        by_hand = torch.logsumexp(weights.log().unsqueeze(-2) + each, -1).mean(-1)
        draws = torch.distributions.Dirichlet(guide.concentration(batch.context)).sample((4000,))
        joint = torch.logsumexp(draws.log().unsqueeze(-2) + each, -1).sum(-1)
        joint = (torch.logsumexp(joint, 0) - math.log(4000)) / 7
    assert found.ll.tolist() == pytest.approx(by_hand.tolist(), abs=1e-4)
    assert found.joint_ll.tolist() == pytest.approx(joint.tolist(), abs=0.05)
    assert found.m.tolist() == [5, 5, 5]


def test_a_fit_is_kept_and_read_back(tmp_path):
    workshop = Workshop(tmp_path, progress=False)
    stream = tasks.mixed_offset(2, 0)
    pair = train(workshop, "key", "NMDP, context", mixture(1, 1, TINY, "context", 0.1), stream, 0, TINY)
    assert not pair[0].training and (tmp_path / "fits/key/nmdp-context-seed0").is_dir()
    again = train(workshop, "key", "NMDP, context", mixture(1, 1, TINY, "context", 0.1), stream, 0, TINY)
    for a, b in zip(pair[1].parameters(), again[1].parameters(), strict=True):
        assert torch.equal(a, b)


# -- what the experiments measure --------------------------------------------------------------------------------------


def test_odd_tasks_are_what_they_say():
    data = nmdp_kernel_mix.test_tasks("random", 200, 20).context
    odd = {name: shift(data) for name, shift in nmdp_ood.SHIFTS.items()}
    torch.testing.assert_close(odd["y × 3"].y, 3 * data.y)
    torch.testing.assert_close(odd["x + 4"].x, data.x + 4)
    noise = odd["white noise"].y
    torch.testing.assert_close(odd["white noise"].x, data.x)
    order = data.x.argsort(1)
    correlation = torch.corrcoef(
        torch.stack([noise.gather(1, order)[:, 1:].flatten(), noise.gather(1, order)[:, :-1].flatten()])
    )
    assert abs(float(correlation[0, 1])) < 0.05
    ratio = noise.std(1) / data.y.std(1)
    assert 0.9 < float(ratio.mean()) < 1.1


def test_odd_scores_cover_refined_guides():
    torch.manual_seed(0)
    model, guide = mixture(1, 1, TINY, "strict", 0.05)()
    data = nmdp_kernel_mix.test_tasks("random", 6, 20).context
    plain, refined = (nmdp_ood.odd_scores((model, g), data) for g in (guide, ConjugateRefinement(model, guide)))
    assert plain.keys() == refined.keys() and all(v.shape == (6,) for v in (*plain.values(), *refined.values()))
    # a conjugate update adds one count a point
    torch.testing.assert_close(refined["α₀"] - plain["α₀"], torch.full((6,), 20.0).double(), rtol=0, atol=1e-3)
    assert float((plain["- typicality"] - refined["- typicality"]).mean()) > 0  # it has fitted the context


def test_regressors_without_a_latent_are_right_on_a_linear_table():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 3, generator=rng).double()
    y = x @ torch.randn(3, 2, generator=rng).double() + 0.1 * torch.randn(600, 2, generator=rng).double()
    test = RegressionTasks(RegressionTable(x, y, "rows"), "test", 2)
    batches = [test.batch(i) for i in range(3)]
    found = {
        name: nmdp_multi_output._scores(fit(test, batches, 0, 200), batches)
        for name, fit in nmdp_multi_output.PLAIN.items()
    }
    assert found["mean"]["mse"] == pytest.approx(1.0, abs=0.15)
    assert found["ridge"]["mse"] < 0.02 and found["network"]["mse"] < 0.05
    assert found["ridge on the context"]["mse"] < 0.05 < found["mean of the context"]["mse"]
    assert found["ridge"]["ece"] < 0.07 and found["ridge"]["ll"] > found["mean"]["ll"] + 2
    # independent rows: the joint score is the marginal one
    assert found["ridge"]["joint_ll"] == pytest.approx(found["ridge"]["ll"], abs=1e-4)


def test_leave_one_out_residuals_of_the_context_ridge_are_the_real_ones():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 12, 3, generator=rng), torch.randn(1, 12, 2, generator=rng)
    batch = Dataset(torch.cat([x, x[:, :1]], 1), torch.cat([y, y[:, :1]], 1)).split(12)
    ((_, closed),) = nmdp_multi_output._context_ridge(None, [batch], 0, 0)
    # the fitted means are those of a ridge with an intercept
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0).fit(x[0].numpy(), y[0].numpy())
    np.testing.assert_allclose(closed.mean[0].numpy(), model.predict(batch.target.x[0].numpy()), atol=1e-4)


def test_the_density_of_the_exact_answer_integrates_to_one():
    batch = tasks.mixed_offset(2, 0, grid=9).batch(0)
    grid = torch.linspace(-4, 4, 1601)
    density = nmdp_bimodal._exact_density(batch, grid)
    assert density.shape == (2, 1601, 9)
    area = density.sum(1) * float(grid[1] - grid[0])
    torch.testing.assert_close(area, torch.ones(2, 9).double(), rtol=0, atol=1e-3)
    torch.manual_seed(0)
    pair = mixture(1, 1, TINY, "context", 0.1)()
    found = nmdp_bimodal._density(pair, batch, torch.linspace(-20, 20, 1601), 5)
    assert found.shape == density.shape
    torch.testing.assert_close(found.sum(1) * 0.025, torch.ones(2, 9), rtol=0, atol=0.02)


def test_claims_of_two_modes_are_judged_by_their_numbers():
    rows = [
        {"model": m, "seed": s, "ll": ll, "joint_ll": joint}
        for s in (0, 1)
        for m, ll, joint in (
            ("NMDP, strict", -0.5, -0.2),
            ("NMDP, context", 0.0, 0.4),
            ("CNP", -0.5, -0.5),
            ("NP", -0.7, -0.7),
            ("ANP", -0.4, -0.3),
        )
    ]
    best = {"ll": 0.13, "joint_ll": 1.0}
    table = pd.DataFrame([*rows, {"model": nmdp_bimodal.ORACLE, "seed": -1, **best}])
    held = nmdp_bimodal._checks(table, [0, 1], best, "small")
    assert sum(c.holds is True for c in held) == 4 and not any(c.holds is False for c in held)
    table.loc[1, "joint_ll"] = -0.6  # one seed misses it
    table.loc[4, "ll"] = 0.3  # and another model lies above the exact answer
    missed = [c.name for c in nmdp_bimodal._checks(table, [0, 1], best, "small") if c.holds is False]
    assert missed == ["NMDP (context) above CNP, joint LL", "no model above the exact ll"]
