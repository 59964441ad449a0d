"""Ranks, energies and the cost of a gauge: exact statements about small matrices."""

import numpy as np
import pandas as pd
import peft
import pytest
import torch

from evaluation import plots
from evaluation.adapters.planted_rank import PlantedTask, planted_data
from evaluation.adapters.rank_analysis import (
    energy_curve,
    entropy_rank,
    gap_threshold,
    gauge_cost,
    kept_ranks,
    place_of,
    rank_stability,
    rank_summary,
    rank_table,
    singular_values,
    threshold_curve,
)
from guides import LrvdConfig, RankwiseGuide
from inference import prune_ranks
from pp_models import LowRankAdapted
from pp_models.log_uniform import log_uniform_kl


def factors(rank=5, seeds=3, dtype=torch.float64):
    return torch.randn(seeds, 12, rank, dtype=dtype), torch.randn(seeds, rank, 9, dtype=dtype)


def test_energies_are_those_of_the_partial_sums():
    b, a = factors()
    order = torch.rand(3, 5)
    curve = energy_curve(b, a, order)
    for s in range(3):
        place = order[s].argsort()
        whole = b[s] @ a[s]
        for m in range(1, 6):
            part = b[s][:, place[:m]] @ a[s][place[:m]]
            expected = 1 - (whole - part).norm() ** 2 / whole.norm() ** 2
            assert float(curve.energy[s, m - 1]) == pytest.approx(float(expected), abs=1e-10)
    assert bool((curve.energy <= curve.bound + 1e-9).all())
    torch.testing.assert_close(curve.energy[:, -1], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(singular_values(b, a), torch.linalg.svdvals(b @ a)[:, :5])


def test_in_the_gauge_of_the_svd_the_bound_is_reached():
    b, a = factors()
    u, s, vh = torch.linalg.svd(b @ a)
    curve = energy_curve(u[..., :5] * s[..., None, :5], vh[:, :5], -s[:, :5])
    torch.testing.assert_close(curve.energy, curve.bound)
    assert bool((curve.auc > curve.auc_random).all())


def test_entropy_rank_counts_equal_singular_values():
    eye = torch.eye(6)[None]
    assert float(entropy_rank(eye[..., :3], eye[:, :3])) == pytest.approx(3.0)
    assert float(entropy_rank(0 * eye, eye)) == 0.0


def test_gap_and_threshold():
    log_alpha = torch.tensor([[-4.0, 3.0, -5.0, 2.5], [1.0, 0.0, 7.0, 8.0]])
    torch.testing.assert_close(gap_threshold(log_alpha), torch.tensor([-0.75, 4.0]))
    assert kept_ranks({"m": log_alpha[0]}, 2.7) == {"m": 3}
    with pytest.raises(ValueError, match="a gap needs at least 2"):
        gap_threshold(log_alpha[:, :1])
    with pytest.raises(ValueError, match="order_by: got shape"):
        energy_curve(*factors(), torch.zeros(3, 4))


def test_the_gauge_of_the_svd_is_the_cheapest_and_splitting_costs_most():
    """Rank 4 in 4 and in 16 components against 50 rotations each; N = 1000, noise 0.5, the KL counted 64 times."""
    update = planted_data(PlantedTask(), 1).update.double()
    u, s, vh = torch.linalg.svd(update)
    costs = {}
    for rank in (4, 16):
        b = torch.zeros(1, 32, rank, dtype=torch.float64)
        a = torch.zeros(1, rank, 32, dtype=torch.float64)
        b[..., :4], a[:, :4] = u[..., :4] * s[:, None, :4].sqrt(), s[:, :4, None].sqrt() * vh[:, :4]
        turn = torch.linalg.qr(torch.randn(50, rank, rank, dtype=torch.float64))[0]
        best, turned = gauge_cost(b, a, 4000, 64), gauge_cost(b @ turn, turn.mT @ a, 4000, 64)
        torch.testing.assert_close((b @ turn) @ (turn.mT @ a), update.expand(50, -1, -1), atol=1e-5, rtol=0)
        assert bool((turned > best).all())
        costs[rank] = float(best), float(turned.mean())
    assert costs[4][0] == pytest.approx(1052, rel=0.01) and costs[4][1] == pytest.approx(1064, rel=0.01)
    assert costs[16][0] == pytest.approx(costs[4][0], abs=0.01) and costs[16][1] == pytest.approx(2570, rel=0.02)


def test_the_closed_form_is_the_least_cost_over_alpha():
    b, a = factors(rank=1, seeds=1)
    energy = float(b.norm() ** 2 * a.norm() ** 2)
    log_alpha = torch.linspace(-12, 8, 200_001, dtype=torch.float64)
    costs = 0.5 * 3.0 * energy * log_alpha.exp() + 7.0 * log_uniform_kl(log_alpha)
    assert float(gauge_cost(b, a, 3.0, 7.0)) == pytest.approx(float(costs.min()), abs=1e-3)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("base_model.model.encoder.layer.3.attention.self.query", (3, "Q")),
        ("encoder.layer.0.attention.output.dense", (0, "O")),
        ("encoder.layer.11.output.dense", (11, "MLP out")),
        ("encoder.layer.11.intermediate.dense", (11, "MLP in")),
        ("deberta.encoder.layer.1.attention.self.value_proj", (1, "V")),
        ("transformer.h.2.attn.c_attn", (2, "QKV")),
        ("transformer.h.2.mlp.c_proj", (2, "MLP out")),
        ("transformer.h.2.attn.c_proj", (2, "O")),
        ("model.layers.7.self_attn.v_proj", (7, "V")),
        ("lm_head", (-1, "lm_head")),
    ],
)
def test_modules_have_a_layer_and_a_kind(module, place):
    assert tuple(place_of(module)) == place


def test_tables_over_steps_and_seeds():
    history = [
        (0, {"layer.0.query": torch.tensor([-4.0, -4.0]), "layer.1.output.dense": torch.tensor([-4.0])}),
        (9, {"layer.0.query": torch.tensor([2.0, -1.0]), "layer.1.output.dense": torch.tensor([5.0])}),
    ]
    table = rank_table(history)
    assert table.kept.tolist() == [2, 1, 1, 0] and table.kind.tolist() == ["Q", "MLP out"] * 2
    other = table.assign(kept=[2, 1, 2, 1])
    stable = rank_stability([table, other])
    assert stable["mean"].tolist() == [3.0, 2.0] and stable["std"].tolist() == pytest.approx([0.0, np.sqrt(2.0)])
    curve = threshold_curve(history[1][1], lambda t: t / 10, [0.0, 3.0])
    assert curve["rank"].tolist() == [1, 2] and curve.score.tolist() == [0.0, 0.3]
    assert len(plots.rank_heatmaps([table, other]).axes) == 4
    assert len(plots.threshold_plot([curve]).axes[0].lines) == 1
    assert len(plots.stability_plot({"LRVD": stable}).axes[0].lines) == 1
    assert len(plots.scale_plot({"seed 0": torch.randn(2, 3)}).axes[0].lines) == 2
    with pytest.raises(ValueError, match="tables"):
        plots.rank_heatmaps([pd.DataFrame()])


def test_energy_plot_draws_a_line_for_each_order():
    b, a = factors()
    curve = energy_curve(b, a, torch.rand(3, 5))
    figure = plots.energy_plot({"log α": curve.energy, "SVD": curve.bound, "random": curve.random})
    assert len(figure.axes[0].lines) == 3


def test_the_summary_of_a_trained_pair():
    base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    model = LowRankAdapted(base, ["0", "2"], rank=3)
    guide = RankwiseGuide(model)
    assert rank_summary(model, guide).energy.isna().all()  # B is still 0
    scales = torch.tensor([-3.0, 2.0, -1.0])
    with torch.no_grad():
        for path, module in model.rank_modules().items():
            module.factors()[1].normal_()
            for cut in guide.rank_parameters(path):
                getattr(cut.owner, cut.name).copy_(scales)
    found = rank_summary(model, guide)
    assert found.kept.tolist() == [2, 2] and found["rank"].tolist() == [3, 3]
    assert found.lowest.tolist() == [-3.0, -3.0] and found.median_kept.tolist() == [-3.0, -3.0]
    for row, module in zip(found.itertuples(), model.rank_modules().values(), strict=True):
        a, b = (factor.detach() for factor in module.factors())
        kept = scales < 1.0
        lost = (b[:, ~kept] @ a[~kept]).norm() ** 2 / (b @ a).norm() ** 2
        assert row.energy == pytest.approx(1 - float(lost), abs=1e-5)
    assert rank_summary(model, guide, threshold=-5.0).energy.tolist() == [0.0, 0.0]


def test_the_summary_of_a_peft_model_with_an_empty_module():
    base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    model = peft.get_peft_model(base, LrvdConfig(r=2, target_modules=["0", "2"]))
    with torch.no_grad():
        model.base_model.model[0].lora_lrvd_log_alpha["default"].fill_(3.0)
    prune_ranks(model)
    found = rank_summary(model).set_index("module")
    assert found["rank"].to_dict() == {"0": 0, "2": 2} and found.kept.to_dict() == {"0": 0, "2": 2}
    with pytest.raises(ValueError, match="has no LRVD layer"):
        rank_summary(torch.nn.Linear(2, 2))
