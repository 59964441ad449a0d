"""How bounds, gradient noise and gradient bias change with the number of particles, K, where the evidence is known.

Run: python -m benchmarks.bounds_and_gradients [--picture docs/pictures/objectives.png]

The model and the guide (0.2 standard deviations off, 1.5 times too wide) are those of benchmarks.objectives_vs_pyro.
Every repeat is a task of its own with guide parameters of its own, so that one pass gives all repeats. Four tables:

* the bound less the evidence, in nats per task: the mean over repeats;
* the signal-to-noise ratio |mean| / standard deviation of the gradient that one task gives to the guide's location
  (iwae's is too noisy for its mean to be seen: it is taken from dreg, whose expectation is the same);
* the mean gradient of reweighted wake-sleep and of forward χ² to the guide's location, over the gradient that each
  approaches for K → ∞: 1 is without bias;
* the effective sample size of 16 particles drawn from the prior, as iw-em's first proposal does, by points of a task.
"""

import argparse
import math

import numpy as np
import pyro
import seaborn as sns
import torch
from matplotlib.figure import Figure

from benchmarks.objectives_vs_pyro import SHIFT, WIDTH, Conjugate
from evaluation.plots.style import INK, SOFT, colours, look, new_figure
from evaluation.plots.style import WIDTH as FIGURE_WIDTH
from inference.objectives import make

POINTS = (1, 4, 20, 100, 400)
PARTICLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BOUNDS = {
    "cubo": ("chi2", {"bound": "cubo"}),
    "iwae": ("iwae", {}),
    "renyi(0.5)": ("renyi", {"alpha": 0.5}),
    "elbo": ("elbo", {}),
}
GRADIENTS = {
    "elbo": ("elbo", {}),
    "elbo stl": ("elbo", {"estimator": "stl"}),
    "elbo score": ("elbo", {"estimator": "score"}),
    "iwae": ("iwae", {}),
    "dreg": ("dreg", {}),
    "rws": ("rws", {}),
    "chi2": ("chi2", {}),
}


def evaluate(name: str, options: dict, particles: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds less the evidence, and gradients to the guide's location (to ascend) in its standard deviations."""
    bounds, gradients = [], []
    chunk = max(1, min(repeats, 2**20 // particles))
    for start in range(0, repeats, chunk):
        pyro.clear_param_store()
        problem = Conjugate(min(chunk, repeats - start), seed=start)
        location = torch.full((len(problem.y),), SHIFT * problem.sd).requires_grad_()
        problem.parameters["shift"] = location
        objective = make(name, num_particles=particles, max_plate_nesting=1, **options)
        terms = objective.terms(problem.model, problem.guide)
        objective.reduce(terms).backward()
        bounds.append(terms.bound.detach().double() - problem.log_evidence)
        gradients.append(-location.grad.double() * WIDTH * problem.sd)
    pyro.clear_param_store()
    return torch.cat(bounds).numpy(), torch.cat(gradients).numpy()


def limits() -> dict[str, float]:
    """In closed form: CUBO₂ for K → ∞ less the evidence, and the gradients of KL(p ‖ q) and of forward χ².

    With u the latent in posterior standard deviations, p(u) = N(0, 1), q(u) = N(d, s²), and p² / q is a Gaussian of
    precision 2 - 1 / s² and mean -d / (2 s² - 1), times the constant E_q[(p / q)²].
    """
    d, s2 = SHIFT, WIDTH**2
    squared = s2 / math.sqrt(2 * s2 - 1) * math.exp(d**2 / (2 * s2 - 1))
    mean = -d / (2 * s2 - 1)
    # E[∇ log q] = (E[u] - d) / s² to the location in posterior standard deviations; times s, in the guide's
    return {"cubo": 0.5 * math.log(squared), "rws": -d / WIDTH, "chi2": (mean - d) / WIDTH}


def measure(repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[float]]]:
    """The three tables: name -> value by number of particles."""
    bounds = {
        label: [evaluate(name, options, k, repeats)[0].mean() for k in PARTICLES]
        for label, (name, options) in BOUNDS.items()
    }
    noise: dict[str, list[float]] = {}
    bias: dict[str, list[float]] = {}
    gradients = {
        label: [evaluate(name, options, k, repeats)[1] for k in PARTICLES]
        for label, (name, options) in GRADIENTS.items()
    }
    for label, found in gradients.items():
        means = gradients["dreg" if label == "iwae" else label]
        noise[label] = [abs(m.mean()) / g.std() for m, g in zip(means, found, strict=True)]
        if label in ("rws", "chi2"):
            noise[label][0] = math.nan  # one particle has the weight 1: a score, of expectation zero
            bias[label] = [g.mean() / limits()[label] for g in found]
    return bounds, noise, bias


def prior_ess(points: int, particles: int = 16, tasks: int = 1000) -> tuple[float, float]:
    """Effective sample size of particles from the prior, mean over tasks, and the share of tasks below 2."""
    pyro.clear_param_store()
    problem = Conjugate(tasks, points)
    for name in ("slope", "shift", "log_width"):
        problem.parameters[name] = torch.zeros(())
    terms = make("iwae", num_particles=particles, max_plate_nesting=1).terms(problem.model, problem.guide)
    pyro.clear_param_store()
    return terms.ess.mean().item(), terms.share_below_2.item()


def show(title: str, table: dict[str, list[float]], digits: int, columns: tuple[int, ...] = PARTICLES) -> None:
    """Prints one table."""
    print(f"\n{title}")
    print(f"{'':13s}", *(f"{column:8d}" for column in columns))
    for label, values in table.items():
        print(f"{label:13s}", *(f"{value:8.{digits}f}" for value in values))


def picture(bounds: dict[str, list[float]], noise: dict[str, list[float]]) -> Figure:
    """Bounds and signal-to-noise ratios against the number of particles."""
    with look():
        figure, axes = new_figure(1, 2, 1.5 * FIGURE_WIDTH, 0.62 * FIGURE_WIDTH)
        figure.get_layout_engine().set(wspace=0.06)
        *most, _, blue = colours(10)  # yellow is hard to see on white
        palette = dict(zip([*GRADIENTS, "cubo", "renyi(0.5)"], [*most, blue], strict=True))
        marks = dict(zip(palette, "osv^DPXhd", strict=True))
        for ax, table in zip(axes[0], (bounds, noise), strict=True):
            for label, values in table.items():
                sns.lineplot(
                    x=PARTICLES, y=values, ax=ax, label=label, color=palette[label], marker=marks[label], markersize=6
                )
            ax.set_xscale("log", base=2)
            ax.set_xticks(PARTICLES, [str(k) for k in PARTICLES])
            ax.set_xlabel("particles of each task, K")
            sns.despine(ax=ax)
        left, right = axes[0]
        left.axhline(0, color=INK, linewidth=1.2)
        left.text(PARTICLES[-1], 0.004, "exact evidence", ha="right", va="bottom", color=INK, fontsize=9)
        limit = limits()["cubo"]
        left.axhline(limit, color=palette["cubo"], linewidth=1, linestyle="--")
        left.text(PARTICLES[-1], limit + 0.004, "CUBO, K → ∞", ha="right", va="bottom", color=SOFT, fontsize=9)
        left.set_ylim(-0.275, 0.13)
        left.set_ylabel("bound less log evidence (nats per task)")
        left.legend(loc="lower right", bbox_to_anchor=(1, 0.08))
        right.set_yscale("log", base=2)
        right.set_ylim(2**-8, 2**4.2)
        ticks = [2.0**i for i in range(-8, 4)]
        right.set_yticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
        right.set_ylabel("signal-to-noise ratio of a task's gradient")
        right.legend(loc="upper left", ncols=2)
        left.set_title("What the bound is", loc="left")
        right.set_title("How noisy the guide's gradient is", loc="left")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10_000)
    parser.add_argument("--picture", help="where to save the figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        bounds, noise, bias = measure(arguments.repeats)
        sizes = list(zip(*(prior_ess(points) for points in POINTS), strict=True))
    print(f"{arguments.repeats} repeats; CUBO for K → ∞ is {limits()['cubo']:.3f} nats above the evidence")
    show("bound less evidence, nats per task, by K", bounds, 3)
    show("signal-to-noise ratio of the gradient to the guide's location, by K", noise, 3)
    show("mean gradient over its limit for K → ∞, by K", bias, 3)
    weights = dict(zip(("mean ESS", "share below 2"), sizes, strict=True))
    show("weights of 16 particles from the prior, by points of a task", weights, 2, POINTS)
    if arguments.picture:
        picture(bounds, noise).savefig(arguments.picture, dpi=160, metadata={"Software": None})
