"""Objectives of this library beside Pyro's own, on tasks whose evidence is known; bounds, weights and time in one run.

Run: python -m benchmarks.objectives_vs_pyro [--repeats 40]

z_t ~ N(0, 1), y_tn ~ N(z_t, 1) for 256 tasks of 4 points, as plain Pyro functions with a plate of tasks. The guide is
the exact posterior moved by 0.2 of its standard deviations and 1.5 times too wide; there are 50 particles.

Bounds are in nats, summed over tasks, with the standard error over repeats, which draw other particles for the same
data. Times are of loss_and_grads on one thread, each step next to one of a hand-written torch IWAE of the same model:
the median of the pairwise ratios. ESS is of the weights as each objective forms them: one set for every task, or, in
ReweightedWakeSleep and TraceTailAdaptive_ELBO, one for the whole batch (the latter's are ranks, the same for all data).
"""

import argparse
import math
import statistics
import time
import warnings
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.trace_tail_adaptive_elbo import TraceTailAdaptive_ELBO

from inference.objectives import TaskObjective, make
from inference.objectives.task_objective import effective_sample_size

SHIFT, WIDTH = 0.2, 1.5
#: rows that must lie within 2 nats of the evidence
CLAIMED = ("ours iwae", "ours dreg", "ours renyi(0)", "ours rws")


class Conjugate:
    """Model and guide as functions of the tasks' indices (None for all), and what is exact about them."""

    def __init__(self, tasks: int = 256, points: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(tasks, 1, generator=generator)
        self.y = z + torch.randn(tasks, points, generator=generator)
        self.sd = (1 + points) ** -0.5
        total = self.y.double().sum(-1)
        squares = self.y.double().square().sum(-1)
        #: log N(y_t; 0, I + 1 1') of each task
        self.log_evidence = -0.5 * (
            points * math.log(2 * math.pi) + math.log(1 + points) + squares - total**2 / (1 + points)
        )
        slope = points / (1 + points)  # of the posterior's mean in the task's mean
        start = {"prior": 0.0, "slope": slope, "shift": SHIFT * self.sd, "log_width": math.log(WIDTH * self.sd)}
        self.parameters = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}

    def param(self, name: str) -> torch.Tensor:
        """Registered with Pyro, whose RenyiELBO computes no gradient otherwise."""
        return pyro.param(name, self.parameters[name])

    def model(self, indices: torch.Tensor | None = None) -> None:
        with pyro.plate("tasks", len(self.y), subsample=indices) as kept:
            y = self.y if indices is None else self.y[kept]
            z = pyro.sample("z", dist.Normal(self.param("prior"), 1.0))
            pyro.sample("y", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, y.shape[-1]]).to_event(1), obs=y)

    def guide(self, indices: torch.Tensor | None = None) -> None:
        with pyro.plate("tasks", len(self.y), subsample=indices) as kept:
            y = self.y if indices is None else self.y[kept]
            loc = self.param("slope") * y.mean(-1) + self.param("shift")
            pyro.sample("z", dist.Normal(loc, self.param("log_width").exp()))

    def hand_written(self, particles: int) -> None:
        """Gradients of the per-task IWAE bound as a research script would have them, without Pyro."""
        p = self.parameters
        loc, scale = p["slope"] * self.y.mean(-1) + p["shift"], p["log_width"].exp()
        q = torch.distributions.Normal(loc, scale, validate_args=False)
        z = q.rsample((particles,))
        prior = torch.distributions.Normal(p["prior"], 1.0, validate_args=False)
        likelihood = torch.distributions.Normal(z.unsqueeze(-1), 1.0, validate_args=False)
        log_w = prior.log_prob(z) + likelihood.log_prob(self.y).sum(-1) - q.log_prob(z)
        (-(torch.logsumexp(log_w, 0) - math.log(particles)).sum()).backward()

    def log_weights(self, particles: int, indices: torch.Tensor | None = None) -> torch.Tensor:
        """log p(y, z_k) - log q(z_k) as Pyro forms it, a subsample's scale included: ``[K, T]``."""
        with torch.no_grad(), pyro.plate("draws", particles, dim=-2):
            drawn = poutine.trace(self.guide).get_trace(indices)
            scored = poutine.trace(poutine.replay(self.model, trace=drawn)).get_trace(indices)
        for trace in (drawn, scored):
            trace.compute_log_prob()
        return sum(scored.nodes[name]["log_prob"] for name in "zy") - drawn.nodes["z"]["log_prob"]


@dataclass
class Row:
    """One objective's results by repeat: bounds, bounds less the evidence, ESS, ratios of time and what they are to."""

    name: str
    objective: pyro.infer.ELBO
    bounds: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    hand_written: list[float] = field(default_factory=list)

    @property
    def gap(self) -> float:
        return statistics.fmean(self.gaps) if self.gaps else math.nan

    def __str__(self) -> str:
        if self.gaps:
            error = statistics.stdev(self.gaps) / len(self.gaps) ** 0.5 if len(self.gaps) > 1 else math.nan
            reported = f"{statistics.fmean(self.bounds):10.2f} {self.gap:+9.2f} ± {error:4.2f}"
        else:
            reported = f"{'none':>10s} {'':16s}"
        ess = f"{statistics.fmean(self.ess):6.1f}" if self.ess else f"{'-':>6s}"
        ratio = f"{statistics.median(self.ratios):7.2f}" if self.ratios else f"{'-':>7s}"
        return f"{self.name:24s} {reported} {ess} {ratio}"


def rows(particles: int) -> list[Row]:
    """The objectives, ours first."""
    options = {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": 1}
    ours = {
        "elbo": make("elbo", **options),
        "iwae": make("iwae", **options),
        "dreg": make("dreg", **options),
        "renyi(0)": make("renyi", alpha=0.0, **options),
        "rws": make("rws", **options),
        "chi2 forward": make("chi2", **options),
        "chi2 cubo": make("chi2", bound="cubo", **options),
    }
    pyros = {
        "Trace_ELBO": Trace_ELBO(**options),
        "RenyiELBO(0)": RenyiELBO(alpha=0, **options),
        "ReweightedWakeSleep": ReweightedWakeSleep(**options),
        "TraceTailAdaptive": TraceTailAdaptive_ELBO(**options),
    }
    return [Row(f"ours {n}", o) for n, o in ours.items()] + [Row(f"Pyro {n}", o) for n, o in pyros.items()]


def bound(objective: pyro.infer.ELBO, loss) -> float | None:
    """What an objective reports, in nats; None for nothing."""
    if isinstance(objective, TraceTailAdaptive_ELBO):
        return None
    if isinstance(objective, ReweightedWakeSleep):
        loss = loss[0]  # of the model; the guide's is no bound
    return -getattr(objective, "sign", 1.0) * float(loss)


def whole_batch_ess(objective: pyro.infer.ELBO, log_weights: torch.Tensor) -> float | None:
    """Effective sample size of the weights that one of Pyro's objectives gives the particles; None without any."""
    if isinstance(objective, TraceTailAdaptive_ELBO):  # one rank for the whole batch, the same ranks whatever the data
        ranks = torch.arange(1, log_weights.shape[0] + 1, dtype=log_weights.dtype)
        log_weights = objective.tail_adaptive_beta * ranks.log()
    elif isinstance(objective, ReweightedWakeSleep):  # one weight for the whole batch
        log_weights = log_weights.sum(-1)
    elif not isinstance(objective, RenyiELBO):  # Trace_ELBO has none
        return None
    return effective_sample_size(log_weights).mean().item()


def compare(problem: Conjugate, particles: int, repeats: int, parts: int = 1) -> list[Row]:
    """Every objective on every repeat; with ``parts``, on as many disjoint subsamples of the tasks, averaged."""
    found = rows(particles)
    model, guide = problem.model, problem.guide
    for repeat in range(repeats + 1):  # the first one warms up
        order = torch.randperm(len(problem.y))
        subsets = [None] if parts == 1 else list(order.chunk(parts))
        for row in found:
            reported, sizes = [], []
            for subset in subsets:
                started = time.perf_counter()
                if parts == 1:
                    problem.hand_written(particles)
                middle = time.perf_counter()
                loss = row.objective.loss_and_grads(model, guide, subset)
                ended = time.perf_counter()
                if isinstance(row.objective, ReweightedWakeSleep):
                    loss = row.objective.loss(model, guide, subset)  # loss_and_grads returns nothing of use
                reported.append(bound(row.objective, loss))
                if isinstance(row.objective, TaskObjective):
                    with torch.no_grad():
                        sizes.append(row.objective.terms(model, guide, subset, diagnostics=True).ess.mean().item())
                else:
                    sizes.append(whole_batch_ess(row.objective, problem.log_weights(particles, subset)))
                if repeat and parts == 1:
                    row.ratios.append((ended - middle) / (middle - started))
                    row.hand_written.append(middle - started)
                for parameter in problem.parameters.values():
                    parameter.grad = None
            if not repeat:
                continue
            if None not in reported:
                row.bounds.append(statistics.fmean(reported))
                row.gaps.append(row.bounds[-1] - problem.log_evidence.sum().item())
            if None not in sizes:
                row.ess.append(statistics.fmean(sizes))
    return found


class Discrete:
    """z_t ~ Categorical or Bernoulli, y_t ~ N(z_t, 1), a guide with one logit per value, tasks alike in all but y."""

    def __init__(self, values: int, tasks: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randn(tasks, generator=generator) + 0.5
        self.values = values
        self.logits = torch.linspace(-0.4, 0.6, 1 if values == 2 else values).requires_grad_()

    def q(self):
        logits = pyro.param("logits", self.logits)
        return dist.Bernoulli(logits=logits.squeeze(-1)) if self.values == 2 else dist.Categorical(logits=logits)

    def prior(self):
        if self.values == 2:
            return dist.Bernoulli(torch.tensor(0.3))
        return dist.Categorical(torch.arange(1.0, self.values + 1))

    def model(self) -> None:
        with pyro.plate("tasks", len(self.y)):
            z = pyro.sample("z", self.prior())
            pyro.sample("y", dist.Normal(z.to(self.y.dtype), 1.0), obs=self.y)

    def guide(self) -> None:
        with pyro.plate("tasks", len(self.y)):
            pyro.sample("z", self.q())

    def gradients(self, objective: pyro.infer.ELBO, repeats: int) -> torch.Tensor:
        """An objective's gradients to the guide's logits, to ascend: ``[repeats, logits]``."""
        found = []
        for _ in range(repeats):
            self.logits.grad = None
            objective.loss_and_grads(self.model, self.guide)
            found.append(-self.logits.grad)
        return torch.stack(found)

    def exact_gradient(self, particles: int) -> torch.Tensor:
        """Of Σ_t E[log (1/K) Σ_k w_k], by enumeration of all patterns of particles."""
        values = torch.arange(float(self.values))
        log_q = self.q().log_prob(values)
        log_w = self.prior().log_prob(values) + dist.Normal(values, 1.0).log_prob(self.y[:, None]) - log_q
        patterns = torch.cartesian_prod(*[torch.arange(self.values)] * particles)
        probabilities = log_q[patterns].sum(-1).exp()
        bounds = torch.logsumexp(log_w[:, patterns], -1) - math.log(particles)
        return torch.autograd.grad((probabilities * bounds).sum(), self.logits)[0]


def discrete_table(particles: int, repeats: int) -> dict[str, tuple[float, float, float, float]]:
    """Guide -> norm of the gradient by RenyiELBO(0), by renyi(0) averaged over repeats and its s.e., and exactly."""
    found = {}
    for name, values in (("Bernoulli", 2), ("Categorical", 3)):
        pyro.clear_param_store()
        problem = Discrete(values)
        options = {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": 1}
        theirs = problem.gradients(RenyiELBO(alpha=0, **options), min(repeats, 20))
        ours = problem.gradients(make("renyi", alpha=0.0, **options), repeats)
        error = ours.std(0).norm() / repeats**0.5
        norms = (theirs.norm(dim=-1).max(), ours.mean(0).norm(), error, problem.exact_gradient(particles).norm())
        found[name] = tuple(norm.item() for norm in norms)
    return found


def main(repeats: int, tasks: int = 256, particles: int = 50) -> tuple[list[Row], list[Row]]:
    """Prints the three tables; returns the rows of the first two."""
    header = f"{'objective':24s} {'bound':>10s} {'less evidence':>16s} {'ESS':>6s} {'time':>7s}"
    with pyro.validation_enabled(False), warnings.catch_warnings():  # as inference.fit runs
        pyro.clear_param_store()
        problem = Conjugate(tasks)
        whole = compare(problem, particles, repeats)
        print(f"torch {torch.__version__}, Pyro {pyro.__version__}, {torch.get_num_threads()} threads")
        print(
            f"{tasks} tasks, {particles} particles, {repeats} repeats; evidence {problem.log_evidence.sum():.2f} nats"
        )
        print(header, *whole, sep="\n")
        seconds = [second for row in whole for second in row.hand_written]
        print(f"time 1.00 is {1e3 * statistics.median(seconds):.1f} ms, of the hand-written IWAE")
        sampled = compare(problem, particles, max(repeats // 4, 2), parts=4)
        print(f"\nthe same with the plate of tasks subsampled to {tasks // 4} (mean over the four quarters)")
        print(header, *sampled, sep="\n")
        print("\ngradient norm to a discrete guide, 8 tasks, 4 particles: Pyro's RenyiELBO(0) (largest), ours, exact")
        for name, (theirs, ours, error, exact) in discrete_table(4, 50 * repeats).items():
            print(f"{name:24s} {theirs:8.4f} {ours:8.4f} ± {error:.4f} {exact:8.4f}")
        pyro.clear_param_store()
    for title, found in (("all tasks", whole), ("subsampled", sampled)):
        gaps = {row.name: row.gap for row in found if row.name in CLAIMED}
        holds = all(abs(gap) < 2 for gap in gaps.values())
        print(f"{title}: {', '.join(CLAIMED)} within 2 nats of the evidence: {'yes' if holds else 'NO'}")
    return whole, sampled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    main(repeats)
