"""A planted rank is found, for ten problems at once, and the controls do not find it."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from evaluation.adapters.planted_rank import PlantedTask, fit_planted, planted_data
from evaluation.adapters.rank_analysis import energy_curve
from evaluation.experiments.lrvd_planted import TASK, VARIANTS, _claims


def test_the_planted_rank_is_found_in_ten_problems():
    state = torch.get_rng_state()
    found = fit_planted(TASK, 10)
    assert torch.equal(torch.get_rng_state(), state)
    for threshold in (-1.0, 1.0, 3.0):
        assert int((found.kept(threshold) == 4).sum()) >= 9
    ordered = found.log_alpha.sort(-1).values
    assert float((ordered[:, 4] - ordered[:, 3]).min()) > 4
    assert float(found.error().max()) < 0.07
    curve = energy_curve(found.b, found.a, found.log_alpha)
    assert float((curve.auc_bound - curve.auc).mean()) < 0.03
    assert float((curve.auc - curve.auc_random).mean()) > 0.25


@pytest.mark.parametrize(
    ("name", "changes", "problems", "threshold", "low", "high"),
    [
        ("control: no sampling", {"steps": 1500}, 3, 3.0, 0, 0),
        ("control: slow log α", {"steps": 600}, 3, -1.0, 16, 16),
        ("control: slow log α", {"steps": 600, "scale_learning_rate": 1e-4}, 3, -1.0, 16, 16),
        ("control: KL counted once", {}, 10, -1.0, 14, 16),
        ("control: shared σ, no sampling", {"steps": 1500}, 3, 3.0, 0, 0),
    ],
)
def test_the_controls_do_not_find_it(name, changes, problems, threshold, low, high):
    found = fit_planted(replace(VARIANTS[name], **changes), problems)
    kept = found.kept(threshold)
    assert low <= int(kept.min()) and int(kept.max()) <= high
    if high == 0:
        assert float(found.error(threshold).min()) == 1.0
    if name == "control: no sampling":  # all are at the bound
        assert float(found.log_alpha.sort(-1).values.diff(dim=-1).max()) < 1e-3


def test_one_variance_for_both_factors_finds_it_less_exactly():
    found = fit_planted(VARIANTS["shared σ"], 2)
    assert int(found.kept().min()) >= 4 and int(found.kept().max()) <= 6
    assert float(found.error().max()) < 0.13


def test_data_have_the_planted_singular_values():
    data = planted_data(replace(TASK, noise=0.0), 3)
    values = torch.linalg.svdvals(data.update)
    torch.testing.assert_close(values[:, :4], torch.tensor(TASK.singular_values).expand(3, 4))
    assert float(values[:, 4:].max()) < 1e-5
    torch.testing.assert_close(data.y, data.x @ data.update.mT)


def test_claims_are_judged_by_what_was_measured():
    row = {"gap": 7.0, "error": 0.05, "auc": 0.94, "auc_svd": 0.95, "auc_random": 0.5, "kept_at_1": 4, "kept_at_3": 4}
    row |= {"kept_at_-1": 4, "planted": 4, "seed": 0}
    table = pd.DataFrame([{"model": name, **row} for name in VARIANTS])
    table.loc[table.model == "control: no sampling", "kept_at_3"] = 0
    holds = {check.name: check.holds for check in _claims(table)}
    assert (
        holds["the planted rank is found exactly at threshold 1"]
        and holds["control: no sampling does not find the rank"]
    )
    assert holds["control: slow log α does not find the rank"] is False
    assert holds["control: KL counted once prunes hardly anything"] is False
    assert sum(holds.values()) == len(holds) - 3


@pytest.mark.parametrize(
    ("option", "message"),
    [({"family": "x"}, "family: got 'x'"), ({"count": "x"}, "count: got 'x'"), ({"rank": 3}, "rank: got 3")],
)
def test_bad_input_gets_one_line(option, message):
    with pytest.raises(ValueError, match=message):
        PlantedTask(**option)
