import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from pyro.distributions import Normal

from evaluation.plots import (
    calibration_plot,
    comparison_plot,
    density_plot,
    fan_plot,
    function_draws,
    image_completions,
    learning_curves,
    picture_rows,
    query_curves,
    rate_maps,
)
from evaluation.plots.functions import _quantiles
from evaluation.plots.images import UNSEEN
from evaluation.plots.style import symlog_ticks
from guides.mixtures.dirichlet_mixture import DirichletMixtureGuide
from guides.networks.bernoulli_dropout import BernoulliExpertGuide
from guides.networks.mc_dropout import MCDropoutGuide
from inference.predict import predict
from inference.prediction import Prediction
from pp_models import tasks
from pp_models.data import Dataset, TaskBatch
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.tasks.gp_oracle import oracle_predict
from pp_models.tasks.image_tasks import ImageTasks

X = torch.linspace(-2, 2, 21)[:, None]


@pytest.fixture(autouse=True)
def no_pyplot_figure():
    """The settings of matplotlib are guarded for every test; here also pyplot's list of figures."""
    yield
    assert plt.get_fignums() == []


@pytest.fixture
def batch():
    return tasks.gp_test("rbf", batch_size=4, num_context=(3, 8), grid=40).batch(0)


@pytest.fixture
def network():
    model = BayesianNetwork([1, 6, 5, 2], likelihood="gaussian-head")
    return model, BernoulliExpertGuide(model, width=8)


def gaussian(loc, scale):
    """A prediction of one draw a row of loc ``[S, T, N, 1]``."""
    normal = Normal(loc, scale)
    return Prediction(normal.to_event(1), normal.sample())


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_fan_plot_has_a_row_a_model_and_a_column_a_task(batch, network):
    prediction = predict(*network, batch.context, X, 20, seed=0)
    figure = fan_plot({"one": prediction, "two": prediction}, batch, X, (1, 3, 0), oracle=oracle_predict(batch, X))
    grid = np.array(figure.axes).reshape(2, 3)
    assert grid[0, 0].get_ylabel() == "one\ny" and grid[1, 0].get_ylabel() == "two\ny"
    m = batch.context.num_points
    assert [axes.get_title() for axes in grid[0]] == [f"Task {t}, {m} context points" for t in (1, 3, 0)]
    for axes, task in zip(grid[1], (1, 3, 0), strict=True):
        assert axes.get_xlabel() == "x" and axes.get_xlim() == (-2, 2)
        y = batch.full.y[task]
        low, high = axes.get_ylim()
        assert low < y.min() and y.max() < high
        # three bands, then target and context points
        assert len(axes.collections) == 5 and len(axes.collections[-1].get_offsets()) == m
        # three draws and the mean, the oracle's mean and two edges
        assert len(axes.lines) == 7
        np.testing.assert_allclose(axes.lines[3].get_ydata(), prediction.mean[task, :, 0], rtol=1e-6)
    assert labels(figure)[:3] == ["95% band", "80% band", "50% band"] and labels(figure)[-1] == "exact ± 2 sd"


def test_fan_plot_sorts_its_inputs_and_shows_the_truth(batch, network):
    shuffled = X[torch.randperm(len(X))]
    prediction = predict(*network, batch.context, shuffled, 5, seed=0)
    truth = shuffled.expand(4, -1, -1) * 2
    figure = fan_plot({"one": prediction}, batch, shuffled, (0,), truth=truth, num_functions=0)
    line = figure.axes[0].lines[-1]
    np.testing.assert_allclose(line.get_xdata(), X[:, 0], rtol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), 2 * X[:, 0], rtol=1e-6)
    assert "truth" in labels(figure) and "target" not in labels(figure) and "function draws" not in labels(figure)


def test_bands_are_the_quantiles_of_the_mixture():
    loc = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)
    found = _quantiles(gaussian(loc, torch.ones_like(loc)), 0, 0, torch.tensor([0.25, 0.5, 0.75]))
    # by symmetry the median is 0, and a quarter lies below the left component's median (up to the other's tail)
    tail = 0.5 * math.erfc(6 / math.sqrt(2))
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found[:, 0], [-3, 0, 3], atol=1e-5 + 3 * tail)


@pytest.mark.parametrize("experts", ["strict", "conjugate"])
def test_bands_of_a_mixture_of_experts_are_its_quantiles_too(experts):
    torch.manual_seed(0)
    model = MixtureDensityNetwork(3, 1, 2, experts, width=8)
    guide = DirichletMixtureGuide(model, 8)
    batch = tasks.gp("rbf", 3, num_context=(4, 4), num_target=(5, 5)).batch(0)
    context = Dataset(batch.context.x, batch.context.y.expand(-1, -1, 2))
    prediction = predict(model, guide, context, batch.target.x, 7, seed=0)
    levels = torch.tensor([0.1, 0.5, 0.9])
    found = _quantiles(prediction, 1, 1, levels)
    assert found.shape == (3, 5)
    torch.manual_seed(1)
    draws = torch.cat([prediction.likelihood.sample()[:, 1, :, 1] for _ in range(3_000)])
    share = (draws.double() < found.unsqueeze(1)).double().mean(1)
    np.testing.assert_allclose(share, levels.unsqueeze(-1).expand(3, 5), atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": {}}, "predictions: got none"),
        ({"tasks": (0, 4)}, r"tasks: got \[0, 4\]; it must hold task numbers from 0 to 3"),
        ({"tasks": ()}, r"tasks: got \[\]"),
    ],
)
def test_fan_plot_says_what_is_wrong(batch, network, arguments, message):
    predictions = {"one": predict(*network, batch.context, X, 2, seed=0)}
    with pytest.raises(ValueError, match=message):
        fan_plot(**({"predictions": predictions, "batch": batch, "x": X} | arguments))


def test_fan_plot_refuses_inputs_that_are_no_line(network):
    data = Dataset(torch.zeros(2, 3, 2), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="inputs of width 2"):
        fan_plot({"one": None}, TaskBatch(data, data), X)


def test_rate_maps_show_every_rate_and_the_spread(batch, network):
    _, guide = network
    figure = rate_maps(guide, batch, (2, 0))
    maps = np.array(figure.axes[:9]).reshape(3, 3)
    for column, (site, rates) in enumerate(guide.rates(batch.context).items()):
        shown = [axes.images[0] for axes in maps[:, column]]
        np.testing.assert_allclose(shown[0].get_array(), rates[2].detach())
        np.testing.assert_allclose(shown[1].get_array(), rates[0].detach())
        np.testing.assert_allclose(shown[2].get_array(), rates.detach().std(0), rtol=1e-5)
        assert {image.get_clim() for image in shown[:2]} == {(0, 1)}
        assert maps[0, column].get_title().startswith(f"Layer {column}\n") and site == f"layer_{column}.weight"
    assert maps[0, 1].get_title() == "Layer 1\n6+1 → 5"
    assert maps[0, 0].get_ylabel().startswith("Task 2") and maps[2, 0].get_ylabel() == "Spread\nacross tasks"
    assert [axes.get_ylabel() for axes in figure.axes[9:]] == ["drop probability", "standard deviation"]


def test_rate_maps_of_a_guide_that_ignores_the_task_have_no_spread(batch, network):
    figure = rate_maps(MCDropoutGuide(network[0], rate=0.3, width=8), batch.context, (0,))
    assert float(np.abs(figure.axes[3].images[0].get_array()).max()) == pytest.approx(0, abs=1e-6)


def test_rate_maps_need_two_tasks(batch, network):
    with pytest.raises(ValueError, match=r"data: got task dimensions \[1\]"):
        rate_maps(network[1], batch[:1])
    with pytest.raises(ValueError, match=r"tasks: got \[7\]"):
        rate_maps(network[1], batch, (7,))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_completions_show_truth_seen_pixels_mean_and_sd(channels):
    model = BayesianNetwork([2, 6, 2 * channels], likelihood="gaussian-head")
    guide = BernoulliExpertGuide(model, width=8)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)
    images = ImageTasks(pictures)
    figure = image_completions(model, guide, images, (0, 7), num_images=2, num_samples=3)
    assert len(figure.axes) == 2 * 7 + 1
    rows = np.array(figure.axes[:14]).reshape(2, 7)
    assert [axes.get_title() for axes in rows[0]] == [
        "truth",
        "seen",
        "0 pixels\nmean",
        "sd",
        "seen",
        "7 pixels\nmean",
        "sd",
    ]
    truth, nothing, mean, sd, some = (rows[0, i].images[0].get_array() for i in range(5))
    assert truth.shape == mean.shape == (4, 5, 3) and sd.shape == (4, 5)
    wide = np.broadcast_to(pictures / 255, (3, 4, 5, 3))
    assert min(np.abs(wide - truth).max((1, 2, 3))) < 1e-6
    assert np.allclose(nothing, UNSEEN)
    seen = ~np.isclose(some, UNSEEN).all(-1)
    assert seen.sum() == 7
    np.testing.assert_allclose(some[seen], truth[seen], atol=1e-6)
    assert sd.min() > 0 and mean.min() >= 0 and mean.max() <= 1


def test_image_completions_use_the_counts_that_fit():
    model = BayesianNetwork([2, 6, 2], likelihood="gaussian-head")
    guide = BernoulliExpertGuide(model, width=8)
    images = ImageTasks(np.zeros((2, 4, 4), np.uint8))
    assert len(image_completions(model, guide, images, num_images=1, num_samples=2).axes) == 4 + 1  # 10 of 16
    with pytest.raises(ValueError, match=r"counts: got \[16\]; each must be from 0 to 15"):
        image_completions(model, guide, images, (16,))
    with pytest.raises(ValueError, match="num_images: got 3"):
        image_completions(model, guide, images, num_images=3)


def test_calibration_plot_lies_on_the_diagonal_for_a_calibrated_model():
    loc = torch.zeros(400, 20, 50, 1)
    good = gaussian(loc, torch.ones_like(loc))
    sharp = gaussian(loc, 0.5 * torch.ones_like(loc))
    y = torch.randn(20, 50, 1)
    figure = calibration_plot({"good": good, "sharp": sharp}, y)
    (axes,) = figure.axes
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)
    diagonal, first, second = axes.lines
    assert [line.get_label() for line in axes.lines] == ["calibrated", "good", "sharp"]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_allclose(first.get_ydata(), first.get_xdata(), atol=0.05)
    # P(|y| <= z_q / 2) for y standard normal
    half = torch.special.ndtri((1 + torch.tensor(second.get_xdata())) / 2) / 2
    np.testing.assert_allclose(second.get_ydata(), torch.erf(half / math.sqrt(2)), atol=0.05)


def test_calibration_plot_leaves_padding_out_and_adds_histograms():
    loc = torch.zeros(9, 2, 4, 1)
    mask = torch.tensor([[True] * 4, [False] * 4])
    y = torch.where(mask.unsqueeze(-1), torch.zeros(2, 4, 1), torch.full((2, 4, 1), 9.0))
    figure = calibration_plot({"one": gaussian(loc, torch.ones_like(loc))}, y, mask, levels=(0.9,), pit_histogram=True)
    assert len(figure.axes) == 2 and figure.axes[1].get_title() == "one"
    assert figure.axes[0].lines[1].get_ydata().tolist() == [1.0]
    area = sum(bar.get_width() * bar.get_height() for bar in figure.axes[1].patches)
    assert area == pytest.approx(1)
    with pytest.raises(ValueError, match="predictions: got none"):
        calibration_plot({}, y)


def test_comparison_plot_shows_means_errors_and_the_oracle():
    table = pd.DataFrame({"model": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "ll": [1.0, 3, 0, 0], "pll": [1.0] * 4})
    figure = comparison_plot(table, {"pll": 1.5})
    assert [axes.get_title() for axes in figure.axes] == ["All points", "Target (PLL)"]
    assert "nats per point" in figure.axes[0].get_xlabel()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    bar = figure.axes[0].containers[0]
    assert bar.lines[0].get_xdata().tolist() == [2.0]
    # standard error of (1, 3): sd sqrt 2 over sqrt 2
    np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 0], [1, 3])
    assert len(figure.axes[0].lines) + 1 == len(figure.axes[1].lines)  # the oracle is known for one score only
    assert labels(figure) == ["mean ± standard error", "one seed", "exact answer"]


def test_comparison_plot_takes_the_error_of_a_single_seed_from_the_table():
    figure = comparison_plot(pd.DataFrame({"model": ["a"], "pll": [1.0], "pll_se": [0.25]}))
    np.testing.assert_allclose(figure.axes[0].containers[0].lines[2][0].get_segments()[0][:, 0], [0.75, 1.25])
    with pytest.raises(ValueError, match=r"table: got 1 rows of columns \['model'\]; it needs 'model' and one of"):
        comparison_plot(pd.DataFrame({"model": ["a"]}))


def test_learning_curves_smooth_over_a_tenth_and_skip_what_is_missing():
    rows = [{"step": i, "loss": float(i % 2), "skipped": 0} for i in range(60)]
    figure = learning_curves({"one": rows, "two": [*rows[:30], {"step": 30, "kl": 2.0}]})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss\n(nats, as trained)", "divergence\n(nats, as trained)"]
    raw, smooth = figure.axes[0].lines[:2]
    assert set(raw.get_ydata()) == {0, 1} and len(smooth.get_xdata()) == 60
    np.testing.assert_allclose(smooth.get_ydata()[10:50], 0.5, atol=0.08)
    assert labels(figure) == ["one", "two"] and figure.axes[1].get_xlabel() == "training step"
    with pytest.raises(ValueError, match="histories: got 1 without any of"):
        learning_curves({"one": []})


def test_a_dollar_sign_in_a_name_is_drawn_as_it_is(tmp_path):
    figure = comparison_plot(pd.DataFrame({"model": ["costs $1^2 $"], "pll": [1.0]}))
    figure.savefig(tmp_path / "figure.png")
    assert not figure.axes[0].get_yticklabels()[0].get_parse_math()


def queries(models):
    rows = [
        {"model": model, "acquisition": way, "points": points, "seed": seed, "ll": points + 2 * seed}
        for model in models
        for way in ("max sd", "random")
        for points in (4, 5, 6)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("models", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_query_curves_have_a_panel_a_model_and_a_line_an_acquisition(models):
    figure = query_curves(queries(models))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == models
    for axes in shown:
        assert [line.get_label() for line in axes.lines] == ["max sd", "random"]
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [4, 5, 6])
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [5, 6, 7])
        band = axes.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [4, 8])  # one standard error of (4, 6), (6, 8)
    assert shown[0].get_ylabel() == "nats per point"
    # the lowest panel of each column says what its axis is
    assert [axes.get_xlabel() for axes in shown[-2:]] == ["context points"] * len(shown[-2:])
    figure.draw_without_rendering()
    assert all(any(label.get_visible() for label in axes.get_xticklabels()) for axes in shown[-2:])


def test_query_curves_of_a_single_seed_and_another_score():
    table = queries(["a"]).query("seed == 0").rename(columns={"ll": "rmse"})
    figure = query_curves(table, "rmse")
    assert figure.axes[0].get_ylabel() == "rmse"
    band = figure.axes[0].collections[0].get_paths()[0].vertices  # of one seed there is no standard error
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [4, 6])
    np.testing.assert_allclose(band[:, 1], band[:, 0])


def test_query_curves_need_their_columns():
    with pytest.raises(ValueError, match="table: column acquisition is missing"):
        query_curves(queries(["a"]).drop(columns="acquisition"))
    with pytest.raises(ValueError, match="table: column crps is missing"):
        query_curves(queries(["a"]), "crps")
    with pytest.raises(ValueError, match="table: it has no row"):
        query_curves(queries(["a"]).iloc[:0])


def test_symlog_ticks_are_zero_and_powers_of_ten_in_range():
    assert symlog_ticks(-30.0, 0.5) == ([-10.0, -1.0, 0.0], ["−10", "−1", "0"])
    assert symlog_ticks(-0.2, 1.2)[0] == [0.0, 1.0]
    assert symlog_ticks(2.0, 40.0)[0] == [0.0, 1.0, 10.0]


def test_function_draws_has_a_panel_a_prior_and_the_last_sets_the_limits():
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    wild, calm = 100 * torch.randn(6, 5, 1), torch.zeros(4, 5, 1) + torch.arange(4.0).reshape(4, 1, 1)
    figure = function_draws({"wild": wild, "calm": calm}, x, number=3, highlighted=1)
    first, second = figure.axes
    assert first.get_title() == "wild" and len(first.lines) == 3 and len(second.lines) == 3
    assert first.get_ylim() == second.get_ylim() == pytest.approx((-0.45, 3.45))
    with pytest.raises(ValueError, match=r"^draws: got none; at least one set is needed$"):
        function_draws({}, x)
    with pytest.raises(ValueError, match=r"^x: got inputs of width 2; a plot of functions needs width 1$"):
        function_draws({"a": calm}, x.expand(5, 2))


def test_picture_rows_may_differ_in_size_but_not_in_number():
    figure = picture_rows({"coarse": torch.rand(3, 4, 4), "fine": torch.rand(3, 9, 7)})
    assert len(figure.subfigs) == 2 and [len(part.axes) for part in figure.subfigs] == [3, 3]
    assert figure.subfigs[1].axes[0].images[0].get_array().shape[:2] == (9, 7)
    for rows in ({}, {"a": torch.rand(3, 4, 4), "b": torch.rand(2, 4, 4)}):
        with pytest.raises(
            ValueError, match=r"^rows: got rows of \[.*\] pictures; there must be rows, all of one length$"
        ):
            picture_rows(rows)


def test_densities_fill_one_panel_a_task_and_model():
    batch = tasks.mixed_offset(2, 0, grid=7).batch(0)
    x, y = batch.target.x[0, :, 0], torch.linspace(-2, 2, 5)
    density = torch.rand(2, 5, 7)
    figure = density_plot({name: density for name in ("a", "b", "c", "d")}, batch, x, y)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 8 and [axes.get_title() for axes in shown if axes.get_title()] == ["a", "b", "c", "d"]
    image = shown[0].images[0]
    np.testing.assert_allclose(image.get_array(), density[0].double().sqrt(), rtol=1e-6)
    assert image.get_extent() == [-2, 2, -2, 2]
    dots = shown[0].collections[0].get_offsets()
    np.testing.assert_allclose(dots[:, 0], batch.context.x[0, :, 0])
    with pytest.raises(ValueError, match="densities: got none"):
        density_plot({}, batch, x, y)
    with pytest.raises(ValueError, match=r"densities: got shape \[2, 7, 5\] for 'a'; it must be \[2, 5, 7\]"):
        density_plot({"a": density.mT}, batch, x, y)
