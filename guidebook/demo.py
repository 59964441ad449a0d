"""The demo: NVDP and baselines on GP tasks and images, BNNP beside NUTS, NMDP's mixtures, LRVD's ranks; minutes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evaluation import plots
from evaluation.arviz.arviz_container import write_netcdf
from evaluation.arviz.arviz_conversion import to_arviz
from evaluation.arviz.arviz_summary import widest_entries
from evaluation.experiments.bnnp_prior_learning import growing_contexts
from evaluation.findings import TRUST
from evaluation.methods import Method, TaskShape
from evaluation.recipes import NVDP_WIDTH_ON_PICTURES, Recipe
from evaluation.report import Code, Heading, Picture, Prose, Section, Table, as_png, write_report
from evaluation.scores.metrics import rate_spread
from evaluation.scores.scoring import parameter_count, score_oracle, score_tasks
from evaluation.scores.two_sample import energy_distance
from evaluation.trust import held_out_tasks, verdict
from guidebook.adapter_demo import planted_figures, text_table
from guidebook.gallery import Pretrained, load_pretrained
from guidebook.parallel_training import Job, train_jobs
from inference import nuts, predict, prior_predictive
from inference.objectives import make
from pp_models import TaskBatch, oracle_predict, tasks
from pp_models.contract import as_objective
from pp_models.files import make_folder
from pp_models.own_files import refuse_others, replaced_own, write_own
from pp_models.tasks.task_stream import batches_of

#: methods of the demo, and steps of each as a share of NVDP's on GP tasks
GP_METHODS = {"nvdp": 1.0, "nvdp+path": 0.5, "nmdp": 0.6, "cnp": 0.8}
IMAGE_METHODS = {"nvdp": 0.5, "nvdp+path": 0.4, "cnp": 0.5}
#: floor of the predictive standard deviation on GP tasks, whose draws have no noise
FLOOR = 0.02
PICTURES = (
    *("functions", "comparison", "calibration", "rates", "completions", "learning", "bnnp_prior", "bnnp_posterior"),
    *("nmdp_predictions", "nmdp_weights", "nmdp_ess", "lrvd_scales", "lrvd_energy"),
)
#: what the folder holds afterwards
FILES = ("report.html", "posterior.nc", "gp.csv", "images.csv", *(f"{name}.png" for name in PICTURES))
#: BNNP's fit, the numbers of points of its panels, and NUTS's warm-up and draws
BNNP, BNNP_CONTEXTS, NUTS_DRAWS = "bnnp-gp-rbf-fixed", (1, 3, 5, 9), 200
#: steps of NMDP as a share of NVDP's, and points of the context of its panel
NMDP_SHARE, NMDP_CONTEXT = 0.35, 6


def _verdicts(fits: Mapping[str, tuple[Method | Pretrained, Any]]) -> pd.DataFrame:
    """Whether to trust each fit, on tasks of its training stream that no training reached: one line each."""
    rows = []
    for name, (method, stream) in fits.items():
        batches = held_out_tasks(stream)
        objective = as_objective(method.objective).name
        trained_on = batches_of(stream, 0, 200)
        answer = verdict(
            method.model, method.guide, batches, objective=objective, trained_on=trained_on, num_simulations=100,
            num_samples=100,
        )  # fmt: skip
        rows.append({"fit": name, "verdict": answer.level, "why": answer.sentence})
    return pd.DataFrame(rows)


def _scores(fitted: dict[str, tuple], batches: list[TaskBatch]) -> pd.DataFrame:
    rows = []
    for name, (method, _) in fitted.items():
        found = score_tasks(method.model, method.guide, batches)
        row = {"model": name, **{c: float(found[c].mean()) for c in ("ll", "rll", "pll", "crps")}}
        row |= {"within 1 sd": float(found.within_1sd.mean()), "within 2 sd": float(found.within_2sd.mean())}
        rows.append(row | {"parameters": parameter_count(method.model, method.guide)})
    return pd.DataFrame(rows)


def run_demo(out: str | Path = "demo", images: str = "digits", seed: int = 0, steps: int = 1_300) -> pd.DataFrame:
    """Trains, compares and writes the report.

    Args:
        out: folder for ``report.html``, the tables, the plots and ``posterior.nc``.
        images: an image data set.
        seed: seed of everything.
        steps: steps of NVDP on GP tasks.

    Returns:
        The GP table, the exact GP's row included.

    Raises:
        CheckpointError: the folder cannot be written to, or holds somebody's files of these names.
        ValueError: ``steps`` below 1, a seed out of range, or unknown images.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}; it must be at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: got {seed}; it must be a non-negative integer below 2^63")
    folder = make_folder(out, "out")
    refuse_others(folder, "out", *FILES)
    held_out = tasks.images(images, "test", 4, 1_000_000, full_image=True)  # an unknown name stops before any training

    pixel = held_out.batch(0).full
    assert pixel.y is not None
    few: dict[str, Any] = {}
    if pixel.num_points <= 200:  # small images: use what the paper's counts would leave out
        few = {"num_context": (3, 3 * pixel.num_points // 4), "max_points": pixel.num_points}
    on_images = tasks.images(images, "train", 16, seed, **few)
    on_functions = tasks.gp("rbf", 16, seed, hyperparameters="fixed")
    image_task = TaskShape(2, pixel.y.shape[-1], NVDP_WIDTH_ON_PICTURES, image_size=held_out.image_size)
    function_task = TaskShape(1, 1, 48, min_scale=FLOOR)
    jobs = [
        Job(f"{name}, {what}", name, task, stream, max(1, int(steps * share)), seed)
        for what, methods, task, stream in (
            ("GP tasks", GP_METHODS, function_task, on_functions),
            (images, IMAGE_METHODS, image_task, on_images),
        )
        for name, share in methods.items()
    ]
    mixed = tasks.branches(16, seed)
    jobs.append(
        Job(
            "nmdp, branches",
            "nmdp-strict",
            TaskShape(1, 1, 32),
            mixed,
            max(1, int(steps * NMDP_SHARE)),
            seed,
            Recipe(4e-3),
        )
    )
    jobs.sort(key=lambda job: -job.steps * (job.task.dim_x + 1) * (4 if "nvdp" in job.method else 1))
    trained = train_jobs(jobs)
    fitted = {name: trained[f"{name}, GP tasks"] for name in GP_METHODS}
    image_fits = {name: trained[f"{name}, {images}"] for name in IMAGE_METHODS}

    print("scoring on test tasks, drawing and writing the report")
    test = tasks.gp_test("rbf", 4, hyperparameters="fixed")
    batches = [test.batch(i) for i in range(40)]
    table = _scores(fitted, batches)
    oracle = score_oracle(batches, FLOOR)
    limits = {c: float(oracle[c].mean()) for c in ("ll", "rll", "pll")}
    table = pd.concat([table, pd.DataFrame([{"model": f"exact GP, sd >= {FLOOR}", **limits}])], ignore_index=True)
    table["parameters"] = table["parameters"].astype("Int64")
    image_table = _scores(image_fits, [held_out.batch(i) for i in range(20)])

    print("sampling BNNP's posteriors with NUTS as well")
    figures = _figures(fitted, image_fits, batches, held_out, table, limits)
    figures |= _nmdp_figures(trained["nmdp, branches"][0])
    bnnp = load_pretrained(BNNP)
    figures |= _bnnp_figures(bnnp, seed, min(NUTS_DRAWS, steps))
    print("adapting a linear map of known rank, and MiniLM")
    figures |= planted_figures(steps, seed)
    adapted = text_table(steps, seed)
    pngs = {stem: as_png(figure) for stem, (figure, _, _) in figures.items()}
    for stem, png in pngs.items():
        write_own(folder / f"{stem}.png", png)
    nvdp: Method = fitted["nvdp"][0]
    idata = to_arviz(nvdp.model, nvdp.guide, batches[1][:2], num_samples=100, seed=seed)
    write_netcdf(idata, folder / "posterior.nc", replaced_own)
    write_own(folder / "gp.csv", table.to_csv(index=False).encode())
    write_own(folder / "images.csv", image_table.to_csv(index=False).encode())
    rates = pd.DataFrame([{"layer": s, **vars(r)} for s, r in rate_spread(nvdp.guide, batches[1].context).items()])
    streams: dict[str, Any] = dict.fromkeys((f"{name}, GP tasks" for name in GP_METHODS), on_functions)
    streams["nmdp, branches"] = mixed
    judged: dict[str, tuple[Method | Pretrained, Any]] = {n: (trained[n][0], stream) for n, stream in streams.items()}
    shown = tasks.gp("rbf", 4, seed, hyperparameters="fixed", num_context=(1, max(BNNP_CONTEXTS)), max_points=30)
    verdicts = _verdicts({**judged, f"{BNNP}, of the gallery, 1 to {max(BNNP_CONTEXTS)} points": (bnnp, shown)})
    drawn: dict[str, list[Section]] = {
        stem: [Heading(title), Picture(figure, caption, png=pngs[stem])]
        for stem, (figure, title, caption) in figures.items()
    }
    sections: list[Section] = [
        Heading(f"Verdict: {int((verdicts['verdict'] == TRUST).sum())} of {len(verdicts)} fits can be trusted"),
        Prose(
            "Of minutes of training, on 32 tasks that no training reached. What stands for the posterior under the "
            "model's own prior must be calibrated on simulated tasks and have reliable importance weights; conditional "
            "priors and models without latents are judged by their predictions. LRVD is not among them: its "
            "multipliers are one set for all tasks."
        ),
        Table(verdicts),
        Heading("Gaussian-process regression"),
        Prose(
            "Log-likelihoods in nats per point on 160 test tasks of 400 points each, the same for every method: LL "
            "over all points, RLL over the context, PLL over the others. The exact GP knows the kernel; no model can "
            "honestly be above it."
        ),
        Table(table),
        Prose(
            "Who did it: nvdp knows a context by its dropout rates alone, read off closed-form regressions; nvdp+path "
            "reads such regressions at every x as well, and what it gains is the path's, not the rates'. nmdp mixes "
            "eight experts, each a regression of the context. docs/results/nvdp.md has longer runs over three seeds."
        ),
        *drawn["functions"],
        *drawn["comparison"],
        *drawn["calibration"],
        *drawn["rates"],
        Heading("Dropout rates by layer"),
        Prose(
            "Mean drop probability and its standard deviation across tasks; 0 would mean that the context is ignored."
        ),
        Table(rates),
        *drawn["learning"],
        Heading(f"Images as functions ({images})"),
        Prose(held_out.source),
        Table(image_table),
        *drawn["completions"],
        Heading("BNNP: a learned prior over functions"),
        Prose(
            f"A network of one hidden layer with latent weights on sines and cosines of x, its prior correlated by "
            f"unit and learned from draws of the same Gaussian process by PP-AVI: the gallery's {BNNP}, trained for "
            f"{bnnp.card.cpu_seconds:.0f} CPU seconds, {bnnp.card.scores['pll']:.2f} nats a held-out point where the "
            f"exact process has {bnnp.card.exact['pll']:.2f}. With the learned prior fixed, NUTS samples the "
            "posteriors that BNNP's guide gives at once. How far the prior's functions are from the true ones is said "
            "beneath. The verdict is of contexts as short as these; of the up to 97 points that it was trained on, "
            "importance weights of the same draws have no reliable mean, however good the predictions."
        ),
        *drawn["bnnp_prior"],
        *drawn["bnnp_posterior"],
        Heading("NMDP: which expert speaks"),
        Prose(
            "A mixture of 16 experts, shared by all tasks, that see x alone; a task has only its weights, from a "
            "Dirichlet given its context, and an expert is drawn for every point anew. The tasks mix four curves in "
            "proportions of their own, so a predictive with one mode must fail. Trained by importance-weighted EM with "
            "the conjugate proposal."
        ),
        *drawn["nmdp_predictions"],
        *drawn["nmdp_weights"],
        *drawn["nmdp_ess"],
        Heading("LRVD: which ranks are needed"),
        Prose(
            "A linear map of rank 4 is learned through 16 rank-one components, each with a multiplier z ~ N(1, α). A "
            "component that is not needed drowns in its own noise; all ranks with log α below 1 are kept."
        ),
        *drawn["lrvd_scales"],
        *drawn["lrvd_energy"],
        Prose(
            "The same on a real transformer, all-MiniLM-L6-v2, adapted in a few steps to 160 made-up opinions, of "
            "which a tenth is mislabelled; docs/results/lrvd.md has longer runs. "
            + (f"Not run here: {adapted}." if isinstance(adapted, str) else "")
        ),
        *([] if isinstance(adapted, str) else [Table(adapted)]),
        Heading("The posterior in ArviZ"),
        Prose("The widest entries of NVDP's weight posterior for two test tasks; the whole of it is posterior.nc."),
        Table(widest_entries(idata)),
        Code(
            "import arviz as az\nidata = az.from_netcdf('posterior.nc')\n"
            "az.summary(idata, var_names=['layer_0.weight'])"
        ),
        Heading("To reproduce"),
        Code(f"guidebook demo --images {shlex.quote(images)} --seed {seed} --steps {steps} --out demo"),
    ]
    write_report(folder, "guidebook demo: NVDP, BNNP, NMDP and LRVD beside their baselines", sections)
    return table


def _figures(
    fitted: dict[str, tuple],
    image_fits: dict[str, tuple],
    batches: list[TaskBatch],
    held_out: Any,
    table: pd.DataFrame,
    limits: dict[str, float],
) -> dict[str, tuple]:
    """Figure, title and caption by file name."""
    show = TaskBatch(batches[1].context[:3], batches[1].target[:3], {k: v[:3] for k, v in batches[1].truth.items()})
    pairs = {n: (method.model, method.guide) for n, (method, _) in fitted.items()}
    drawn = {n: predict(*pair, show.context, show.full, 100, seed=0) for n, pair in pairs.items()}
    nvdp, image_nvdp = fitted["nvdp"][0], image_fits["nvdp+path"][0]
    many = tasks.gp_test("rbf", 64, grid=100, num_context=(20, 20), hyperparameters="fixed").batch(0)
    calibrated = {n: predict(*pair, many.context, many.target, 100, seed=0) for n, pair in pairs.items()}
    pixels = held_out.batch(0).full.num_points
    counts = (10, 30, 100) if pixels > 200 else (4, 10, 30)
    assert many.target.y is not None
    return {
        "functions": (
            plots.fan_plot(drawn, show, show.full.x, tasks=(0, 1, 2), oracle=oracle_predict(show, show.full.x)),
            "Predictions",
            "Central 50, 80 and 95 % bands, coherent function draws and the context points of three tasks.",
        ),
        "comparison": (plots.comparison_plot(table[:-1], limits), "Comparison", "Means over the test tasks."),
        "calibration": (
            plots.calibration_plot(calibrated, many.target.y),
            "Calibration",
            "Nominal against empirical coverage of central intervals, 64 tasks with 20 context points.",
        ),
        "rates": (
            plots.rate_maps(nvdp.guide, show),
            "Dropout rates",
            "Drop probability of every weight by layer and task, and its spread across the tasks.",
        ),
        "completions": (
            plots.image_completions(image_nvdp.model, image_nvdp.guide, held_out, counts=counts),
            "Completions",
            f"NVDP with a path of closed-form regressions, from {counts[0]}, {counts[1]} and {counts[2]} of {pixels} "
            "pixels.",
        ),
        "learning": (
            plots.learning_curves({n: history for n, (_, history) in fitted.items()}),
            "Training",
            "Training curves on GP tasks.",
        ),
    }


def _bnnp_figures(fitted: Pretrained, seed: int, nuts_draws: int) -> dict[str, tuple]:
    """BNNP's prior beside the true process, and its posteriors of growing contexts beside NUTS's and the exact one."""
    model: Any = fitted.model
    drawn = tasks.gp_test("rbf", 100, seed + 1, grid=100, hyperparameters="fixed").batch(0).full
    truth, x = drawn.y, torch.linspace(-2, 2, 100).unsqueeze(-1)
    assert truth is not None
    truth = truth.gather(1, drawn.x.argsort(1))  # contexts come first in a task, in no order
    plain: Any = fitted.card.configuration.build().model
    priors = {
        "before training": prior_predictive(plain, x, 100, seed=0).function_samples,
        "learned": prior_predictive(model, x, 100, seed=0).function_samples,
        "the true process": truth,
    }
    near, far = (energy_distance(priors[name], truth) for name in ("learned", "before training"))
    most = max(BNNP_CONTEXTS)
    one = tasks.gp("rbf", 1, seed + 2, hyperparameters="fixed", num_context=(most, most)).batch(0)
    show = growing_contexts(one, BNNP_CONTEXTS)
    show = TaskBatch(show.context, show.target, {k: v.expand(len(show), *v.shape[1:]) for k, v in one.truth.items()})
    sampled = nuts(model, show.context, nuts_draws, nuts_draws, seed=seed)
    posteriors = {
        "BNNP": predict(model, fitted.guide, show.context, x, 200, seed=0),
        "NUTS": sampled.predict(x.expand(len(show), *x.shape)),
    }
    titles = [f"{count} point{'s' if count > 1 else ''}" for count in BNNP_CONTEXTS]
    return {
        "bnnp_prior": (
            plots.function_draws(priors, x),
            "Prior draws",
            f"100 functions each, three in black; energy distance to the true ones {far:.3f}, learned {near:.3f}.",
        ),
        "bnnp_posterior": (
            plots.fan_plot(posteriors, show, x, (0, 1, 2, 3), titles=titles, oracle=oracle_predict(show, x)),
            "Posteriors",
            f"One function as points come in, the exact process beneath; NUTS with {nuts_draws} warm-up steps and "
            f"draws, {sampled.diverging} divergent.",
        ),
    }


@torch.no_grad()
def _nmdp_figures(method: Method) -> dict[str, tuple]:
    """NMDP's predictive densities, its weights by task, and the effective sample size of each proposal."""
    model: Any = method.model
    guide: Any = method.guide
    few = tasks.branches(3, 1_000_000, num_context=(NMDP_CONTEXT, NMDP_CONTEXT)).batch(0)
    x, y = torch.linspace(-2, 2, 120), torch.linspace(-2.2, 2.2, 140)
    found = predict(model, guide, few.context, x.unsqueeze(-1), weights="mean")
    density = torch.stack([found.log_prob(torch.full((3, len(x), 1), float(v))).exp() for v in y], 1)
    many = tasks.branches(60, 1_000_001, num_context=(20, 20)).batch(0)
    sizes: dict[str, dict[int, torch.Tensor]] = {}
    for proposal in ("prior", "conjugate"):
        objective = make("iw-em", num_particles=16, proposal=proposal, score="target")
        sizes[proposal] = {}
        for points in (5, 20, 50):
            batch = tasks.branches(60, 1_000_002, num_context=(3, 3), num_target=points).batch(0)
            ess = objective.terms(model, guide, batch).ess
            assert ess is not None
            sizes[proposal][points] = ess
    means = {name: float(by_points[50].mean()) for name, by_points in sizes.items()}
    return {
        "nmdp_predictions": (
            plots.density_plot({"NMDP": density}, few, x, y),
            "Predictive densities",
            f"Shades of the density at every x for three tasks, from {NMDP_CONTEXT} context points (dots).",
        ),
        "nmdp_weights": (
            plots.weight_maps(guide.mean_weights(many.context)),
            "Mixture weights",
            "Mean weights of 60 tasks with 20 context points, ordered by the expert they use most.",
        ),
        "nmdp_ess": (
            plots.effective_sizes(sizes, 16),
            "Effective sample size by proposal",
            f"Of 16 particles in 60 tasks with 3 context points; with 50 scored points {means['prior']:.1f} are left "
            f"with the prior as proposal and {means['conjugate']:.1f} with the conjugate one.",
        ),
    }
