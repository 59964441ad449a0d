"""Whether to trust a fit of any Pyro model: weights, loss, a short NUTS, replications of the data, refits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evaluation.arviz.pyro_converter import check_traces, is_factor, joint_densities
from evaluation.diagnostics import ess, khat_threshold, psis, rhat
from evaluation.findings import (
    LEAST_EFFICIENCY,
    MOST_BIAS,
    MOST_SPREAD,
    RELIABLE,
    STANDARD_ERRORS,
    TRUST,
    Evidence,
    Verdict,
)
from evaluation.posterior_collapse import collapse
from guides.any_model.amortised_guide import AnyModelGuide
from inference.objectives.dreams import simulate_arguments
from inference.objectives.independent_plates import is_point_mass, sample_sites
from inference.objectives.task_objective import effective_sample_size
from inference.plateau import LEAST_ROWS, settled
from inference.progress import Stages
from inference.random_state import seeded
from inference.reference.pyro_nuts import pyro_nuts

#: share of coordinates that must be near the reference's, and what near is: mean in its sds, sd as a factor
NEAR, NEAR_MEAN, NEAR_SPREAD = 0.9, 0.3, 1.4
#: effective share at which draws nearly all count, whatever the weights' tail
NEARLY_ALL = 0.9
#: how much larger a sample is drawn where the first leaves k-hat within its standard error of the limit
MORE_DRAWS = 4
#: draws of the reference after as many of warm-up, and what it must show itself
NUTS_DRAWS, MOST_RHAT, LEAST_ESS, MOST_DIVERGENT = 300, 1.05, 50, 0.02
#: coordinates beyond which no reference is tried
MOST_COORDINATES = 2_000
#: data sets that an amortised guide answers, and its draws for each
SIMULATIONS, RANK_DRAWS = 60, 39
#: draws that tell a collapsed latent
COLLAPSE_DRAWS = 200
#: two-sided tail of a replicated statistic that counts
LEAST_TAIL = 0.01
#: nats a loss may still fall by
LEAST_GAIN = 0.1
Draws = dict[str, list[Tensor]]


def pyro_verdict(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    losses: Sequence[float] | Sequence[Mapping[str, float]] | None = None,
    checks: Sequence[Callable[[Mapping[str, Tensor]], float | Tensor]] = (),
    nuts_seconds: float = 30.0,
    refit: Callable[[Callable], Callable] | None = None,
    refit_seconds: float = 60.0,
    num_samples: int = 1_000,
    seed: int = 0,
    progress: bool = False,
) -> Verdict:
    """What :func:`evaluation.verdict` gives for a pair that is called with arguments of its own; see there."""
    tested = Evidence("posterior")
    with Stages(progress) as shown, seeded(seed):
        draws = _Draws(model, guide, args, kwargs)
        shown.begin("draws of the guide", num_samples)
        draws.take(num_samples, shown)
        points = _judge_points(tested, draws)
        if not points:
            _judge_weights(tested, draws, shown)
        if losses is not None:
            _judge_loss(tested, losses)
        shown.begin("a short NUTS as a reference", 1)
        _judge_by_nuts(tested, draws, nuts_seconds)
        _judge_replications(tested, draws, checks)
        _judge_collapse(tested, model, guide, args, kwargs, seed)
        if refit is None and _is_amortised(guide):
            _judge_simulations(tested, model, guide, args, kwargs, seed, shown)
        if refit is not None:
            _judge_refits(tested, model, guide, args, kwargs, refit, refit_seconds, seed, shown)
    _allow_light_tails(tested)
    found = tested.verdict()
    unseen = not any(f.name in ("reference", "refits", "simulations") and f.passed is not None for f in found.findings)
    if found.level == TRUST:
        reason = "as far as these tests see, the guide's draws are the posterior's."
        if unseen:
            reason += " Only the weights could be looked at, which cannot see what the guide never visits."
        reason = " ".join([reason, *(f.sentence for f in found.findings if f.mark == "!")])
        return Verdict(found.level, reason, found.findings, found.advice, found.numbers)
    advice = [line.replace('draw with sample_posterior(..., correct="psis")', WEIGHTED) for line in found.advice]
    return Verdict(found.level, found.reason, found.findings, advice, found.numbers, found.ranks)


WEIGHTED = "resample(from_pyro_svi(model, guide, *args)), whose draws are weighed"


class _Draws:
    """Draws of a guide under its model: weights, latents, replicated data, and terms of the log-weight by site."""

    def __init__(self, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.log_weights: list[Tensor] = []
        self.latents: Draws = {}
        self.replicated: Draws = {}
        self.terms: Draws = {}
        self.observed: dict[str, Tensor] = {}
        self.points: list[str] = []
        self.plates: tuple[str, ...] = ()

    @torch.no_grad()
    def take(self, count: int, shown: Stages) -> None:
        for _ in range(count):
            guide_trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*self.args, **self.kwargs)
            check_traces(trace, guide_trace)
            log_p, log_q, self.plates = joint_densities(trace, guide_trace)
            self.log_weights.append(log_p - log_q)
            inside = dict(sample_sites(guide_trace))
            self.points = [n for n, s in inside.items() if not s["is_observed"] and is_point_mass(s["fn"])]
            for name, site in sample_sites(trace):
                if site["infer"].get("_deterministic", False):
                    continue
                term = torch.as_tensor(site["log_prob_sum"])
                if not is_factor(site) and not site["is_observed"]:
                    value = torch.as_tensor(site["value"])
                    self.latents.setdefault(name, []).append(value.detach().reshape(-1).double().cpu())
                    for own in (name, f"{name}_unconstrained"):  # where an AutoNormal has its density
                        term = term - inside[own]["log_prob_sum"] if own in inside else term
                elif not is_factor(site):
                    self.observed[name] = torch.as_tensor(site["value"]).detach().cpu()
                    self.replicated.setdefault(name, []).append(site["fn"].sample().detach().cpu())
                self.terms.setdefault(name, []).append(term.detach().double().cpu().reshape(()))
            shown.advance()
        if not self.observed and self.terms.keys() <= self.latents.keys():
            raise ValueError("model: it observes nothing with these arguments; a posterior needs data")


def _judge_points(tested: Evidence, draws: _Draws) -> bool:
    """Point masses first: their weights look perfect."""
    free = [n for n in draws.points if n in draws.latents and not bool(torch.stack(draws.latents[n]).std(0).any())]
    if not draws.latents:
        raise ValueError("model: it has no latent site with these arguments; there is no posterior to judge")
    if free:
        tested.reliable = False
        tested.add(
            "spread", f"{len(free)} of {len(draws.latents)} latent sites are point masses, {free[0]!r} first",
            "latents are drawn from a density", False,
            f"The guide is a point at {free[0]!r}: it has no posterior spread.",
            "a guide with a density, such as AutoNormal or AutoMultivariateNormal",
        )  # fmt: skip
    return bool(free)


def _allow_light_tails(tested: Evidence) -> None:
    """Weights whose tail alone is bad do not weigh where nearly all draws count and a test beside them passed.

    A Gaussian guide has lighter tails than nearly any posterior: with enough draws its k-hat is bad however near it is.
    """
    near = any(f.name in ("reference", "simulations") and f.passed for f in tested.findings)
    if not near or tested.reliable or tested.numbers.get("efficiency", 0.0) < NEARLY_ALL:
        return
    for i, finding in enumerate(tested.findings):
        if finding.name == "importance weights":
            said = "The guide's tails are too light for importance weights: use its draws as they are."
            tested.findings[i] = replace(finding, weighs=False, sentence=said)


def _look(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k-hat, its standard error and the effective share of draws ``[S, E]`` → ``[E]`` each."""
    count = len(log_weights)
    khat = psis(log_weights.unsqueeze(0))
    tail = min(count / 5, 3 * math.sqrt(count))
    return khat, (1 + khat.clamp_min(0)) / math.sqrt(tail), effective_sample_size(log_weights) / count


def _judge_weights(tested: Evidence, draws: _Draws, shown: Stages) -> None:
    def weights() -> Tensor:
        return torch.stack(draws.log_weights).reshape(len(draws.log_weights), -1)

    def close(khat: Tensor, error: Tensor) -> bool:
        return bool(((khat - khat_threshold(len(draws.log_weights))).abs() < error).double().mean() > 1 - RELIABLE)

    found = weights()
    khat, error, share = _look(found)
    if close(khat, error):  # too near the limit to tell: a larger sample does
        more = (MORE_DRAWS - 1) * len(draws.log_weights)
        shown.begin("more draws, since k-hat is near its limit", more)
        draws.take(more, shown)
        found = weights()
        khat, error, share = _look(found)
    count = len(found)
    threshold = khat_threshold(count)
    good = (khat < threshold) | (share > 0.99)  # weights that hardly differ have no tail to fit
    tested.reliable = bool(good.double().mean() >= RELIABLE)
    level = float(share.median())
    worst = int(khat.argmax())
    tested.numbers |= {"khat": float(khat.median()), "khat_error": float(error.median()), "efficiency": level}
    tested.numbers |= {"share_reliable": float(good.double().mean()), "draws": count}
    if found.shape[1] == 1:
        measured = f"k-hat {float(khat[0]):.2f} ± {float(error[0]):.2f} of {count} draws, limit {threshold:.2f}"
    else:
        where = f"element {worst} of {' x '.join(draws.plates)}"
        measured = (
            f"k-hat below {threshold:.2f} in {float(good.double().mean()):.0%} of {found.shape[1]} independent "
            f"elements, worst {float(khat[worst]):.2f} ± {float(error[worst]):.2f} ({where})"
        )
    sentence = "The weights that would mend the guide have a reliable mean."
    if not tested.reliable:
        sentence = (
            f"The guide misses part of the posterior, most of all at {_carrier(draws)}: its weights have no mean."
        )
    tested.add(
        "importance weights", measured, f"at least {RELIABLE:.0%} reliable", tested.reliable, sentence,
        "a guide with correlations or heavier tails; a non-centred model; more steps, with a smaller learning rate",
    )  # fmt: skip
    enough = level >= LEAST_EFFICIENCY
    tested.add(
        "efficiency", f"effective share of the draws {level:.2f}; their spread comes from {_carrier(draws)}",
        f">= {LEAST_EFFICIENCY}", enough,
        "The guide's draws are near the posterior's." if enough
        else f"Only {level:.0%} of the guide's draws count once they are weighed.",
        "train longer, or a richer guide",
    )  # fmt: skip


def _carrier(draws: _Draws) -> str:
    """The site whose terms vary most with the log-weight."""
    terms = {name: torch.stack(values) for name, values in draws.terms.items()}
    total = sum(terms.values(), torch.zeros(()))
    centred = total - total.mean()
    shares = {name: float(((t - t.mean()) * centred).mean()) for name, t in terms.items()}
    latent = {name: s for name, s in shares.items() if name in draws.latents} or shares
    return repr(max(latent, key=lambda name: abs(latent[name])))


def _judge_loss(tested: Evidence, losses: Sequence[Any]) -> None:
    rows = [row if isinstance(row, Mapping) else {"loss": float(row)} for row in losses]
    if len(rows) < LEAST_ROWS:
        tested.add(
            "training", f"{len(rows)} losses", "the loss has settled", None, "Too few losses to see whether it settled."
        )
        return
    fifth = max(len(rows) // 5, 4)
    values = torch.tensor([float(row["loss"]) for row in rows[-2 * fifth :]], dtype=torch.float64)
    values = values[torch.isfinite(values)]
    before, after = values.chunk(2)
    gain = float(before.mean() - after.mean())
    error = float((before.var() / len(before) + after.var() / len(after)).sqrt())
    done = settled(rows) or gain <= max(STANDARD_ERRORS * error, LEAST_GAIN)
    tested.add(
        "training", f"the loss fell by {gain:.3g} ± {error:.2g} over the newest fifth of {len(rows)}",
        f"by at most {LEAST_GAIN} nats, or {STANDARD_ERRORS:g} standard errors, or 1 % of all that was gained", done,
        "The loss has settled." if done else "The loss still falls.",
        "train longer, or with a smaller learning rate at the end",
    )  # fmt: skip


def _judge_by_nuts(tested: Evidence, draws: _Draws, seconds: float) -> None:
    size = sum(len(values[0]) for values in draws.latents.values())
    if seconds <= 0 or size > MOST_COORDINATES:
        why = "not asked for" if seconds <= 0 else f"{size:,} coordinates, more than {MOST_COORDINATES:,}"
        tested.add("reference", why, "draws are those of NUTS", None, "No short NUTS was run.")
        return
    found, how, sound = short_nuts(draws.model, draws.args, draws.kwargs, seconds)
    if found is None or not sound:
        tested.add(
            "reference", f"NUTS: {how}", "draws are those of NUTS", None,
            "NUTS gave no reference: the model may want another parametrisation.",
        )  # fmt: skip
        return
    near, worst = [], (0.0, "", 0.0, 1.0)
    for name, values in draws.latents.items():
        if name not in found:
            continue
        ours, true = torch.stack(values), found[name].reshape(len(found[name]), -1).double()
        sd = true.std(0).clamp_min(1e-12)
        gap, ratio = (ours.mean(0) - true.mean(0)).abs() / sd, ours.std(0).clamp_min(1e-12) / sd
        # what the reference itself leaves open
        error = 2 / ess(true.unsqueeze(0)).clamp_min(1).sqrt()
        far = ((gap - error).clamp_min(0) / NEAR_MEAN).maximum((ratio.log().abs() - error) / math.log(NEAR_SPREAD))
        near.append(far < 1)
        i = int(far.argmax())
        label = name if len(far) == 1 else f"{name}[{i}]"
        worst = max(worst, (float(far[i]), label, float(gap[i]), float(ratio[i])))
    share = float(torch.cat(near).double().mean())
    passed = share >= NEAR
    tested.numbers |= {"share_near_nuts": share}
    wide = "too narrow" if worst[3] < 1 else "too wide"
    tested.add(
        "reference",
        f"{share:.0%} of {sum(map(len, near))} coordinates near NUTS ({how}); worst {worst[1]}: mean off "
        f"{worst[2]:.2f} sd, sd x {worst[3]:.2f}",
        f"at least {NEAR:.0%} within {NEAR_MEAN} sd and a factor {NEAR_SPREAD}",
        passed,
        "The guide's draws are near those of NUTS." if passed
        else f"Draws of {worst[1]} are not NUTS's: mean off by {worst[2]:.2f} sd, {wide} by a factor {worst[3]:.2f}.",
        "a guide with correlations, or NUTS itself: this model is small enough",
    )  # fmt: skip


def short_nuts(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], seconds: float, draws: int = NUTS_DRAWS
) -> tuple[dict[str, Tensor] | None, str, bool]:
    """Draws by site of a short NUTS, what it showed, and whether it is a reference; None where there are no draws."""

    start = time.monotonic()

    def stop(*_: Any) -> None:
        if time.monotonic() - start > seconds:
            raise TimeoutError

    try:
        sampled, divergences = pyro_nuts(model, args, kwargs, draws, draws, seed=None, max_tree_depth=6, hook=stop)
    except TimeoutError:
        return None, f"not finished in {seconds:g} s", False
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}", False
    found = {name: value[0].cpu() for name, value in sampled.items()}
    divergent = int(divergences.sum())
    flat = torch.cat([v.reshape(draws, -1).double() for v in found.values()], 1)
    halves = flat.reshape(2, draws // 2, -1)
    worst, least = float(rhat(halves).max()), float(ess(flat.unsqueeze(0)).min())
    sound = divergent <= MOST_DIVERGENT * draws and worst < MOST_RHAT and least > LEAST_ESS
    return found, f"{draws} draws, {divergent} divergences, R-hat {worst:.2f}, ESS {least:.0f}", sound


def _judge_replications(tested: Evidence, draws: _Draws, checks: Sequence[Callable]) -> None:
    """Notes on the model: is the data like what it replicates? A user's own checks weigh."""
    for name, seen in draws.observed.items():
        if not draws.replicated.get(name):
            continue
        again, seen = torch.stack(draws.replicated[name]).double(), seen.double()
        inside = torch.isfinite(seen)
        if not bool(inside.any()):
            continue
        ranks = ((again < seen).double() + 0.5 * (again == seen).double()).mean(0)[inside]
        centre = float(ranks.mean())
        error = 1 / math.sqrt(12 * ranks.numel())
        good = abs(centre - 0.5) < STANDARD_ERRORS * error + 0.05
        tested.note(
            f"replications of {name}", f"mean rank of {ranks.numel()} values among replications {centre:.2f}",
            "near 0.5", good,
            "The data look like replications of the model." if good
            else f"Replications of {name!r} are shifted from the data: the model, or the fit, misses their level.",
            "look at the model itself: posterior predictive plots of the data",
        )  # fmt: skip
    if not draws.replicated:
        return
    for check in checks:
        label = getattr(check, "__name__", type(check).__name__)
        seen_value = float(check(draws.observed))
        count = min(map(len, draws.replicated.values()))
        each = torch.tensor([float(check({n: v[i] for n, v in draws.replicated.items()})) for i in range(count)])
        below = float(((each < seen_value).double() + 0.5 * (each == seen_value).double()).mean())
        tail = 2 * min(below, 1 - below)
        tested.add(
            f"check {label}",
            f"{seen_value:.3g} in the data, {float(each.mean()):.3g} ± {float(each.std()):.3g} replicated",
            f"two-sided tail of at least {LEAST_TAIL}", tail >= LEAST_TAIL,
            "The data look like replications." if tail >= LEAST_TAIL
            else f"No replication of the data has their {label}: the model does not make such data.",
            "another likelihood, or what the check says is missing in the model",
        )  # fmt: skip


def _judge_collapse(
    tested: Evidence, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any], seed: int
) -> None:
    """A note: which latents of a plate's elements carry nothing of their data."""
    try:
        table = collapse(model, guide, *args, num_samples=COLLAPSE_DRAWS, seed=seed, **kwargs)
    except (ValueError, NotImplementedError):  # nothing latent, or an improper prior
        return
    table = table[table["moved"].notna()]
    if not len(table):
        return
    passive, mixed = (int((table["state"] == state).sum()) for state in ("passive", "mixed"))
    tested.numbers |= {"passive_latents": passive / len(table)}
    tested.note(
        "collapse", f"{passive} of {len(table)} coordinates passive, {mixed} mixed", "none passive", not passive,
        "Every latent coordinate responds to the data." if not passive
        else "Some latents are their prior whatever the data: the guide collapsed there, or the model ignores them.",
        "a KL that grows (KLSchedule), free bits, or fewer latents",
    )  # fmt: skip


class _Instead(Messenger):
    """Puts simulated values into a model's observed sites, or draws them where there are none."""

    def __init__(self, values: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or msg["infer"].get("_deterministic", False) or is_factor(msg):
            return
        if self.values is None:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
        elif msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def _judge_refits(
    tested: Evidence,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    refit: Callable[[Callable], Callable],
    seconds: float,
    seed: int,
    shown: Stages,
) -> None:
    """Simulation-based calibration: data of the prior, fitted anew; the truth must rank uniformly among the draws."""
    ranks: dict[str, list[float]] = {}
    start, number = time.monotonic(), 0
    shown.begin(f"refits of simulated data, for {seconds:g} s", 1)
    while number < 5 or time.monotonic() - start < seconds:
        with torch.no_grad(), _Instead(None):
            truth = poutine.trace(model).get_trace(*args, **kwargs)
        seen = {n: s["value"] for n, s in sample_sites(truth)}

        def simulated(*a: Any, _seen: Mapping[str, Tensor] = seen, **k: Any) -> Any:
            with _Instead(_seen):
                return model(*a, **k)

        found = refit(simulated)
        if not callable(found):
            raise ValueError(f"refit: it gave {type(found).__name__}; it must give the guide it fitted")
        drawn = _Draws(simulated, found, args, kwargs)
        drawn.take(99, shown)
        _rank(ranks, drawn, truth, seed, 99)
        number += 1
    _judge_ranks(tested, "refits", ranks, number)


def _is_amortised(guide: Any) -> bool:
    """Whether a guide has another posterior for other data, without being fitted anew."""
    inner = getattr(guide, "guide", guide)  # a refined one's
    return isinstance(inner, AnyModelGuide) and (inner.encoder is not None or inner._function is not None)


def _judge_simulations(
    tested: Evidence, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any], seed: int, shown: Stages
) -> None:
    """Simulation-based calibration of an amortised guide, which answers simulated data as it is."""
    ranks: dict[str, list[float]] = {}
    shown.begin("simulated data", SIMULATIONS)
    for number in range(SIMULATIONS):
        try:
            with torch.no_grad():
                given, named, truth = simulate_arguments(model, args, dict(kwargs))
            drawn = _Draws(model, guide, given, named)
            drawn.take(RANK_DRAWS, shown)
        except (ValueError, NotImplementedError):  # its data are no arguments of theirs, or its prior is improper
            return
        _rank(ranks, drawn, truth, number + seed, RANK_DRAWS)
    _judge_ranks(tested, "simulations", ranks, SIMULATIONS, RANK_DRAWS)


def _rank(ranks: dict[str, list[float]], drawn: _Draws, truth: Any, place: int, draws: int) -> None:
    """Adds the ranks of one data set's truth: of a coordinate of each site, and of the site's mean."""
    for name, values in drawn.latents.items():
        if len(values) != draws or name not in truth.nodes:
            continue
        true, found = torch.as_tensor(truth.nodes[name]["value"]).reshape(-1).double(), torch.stack(values)
        below = (found < true).double().mean(0)
        ranks.setdefault(name, []).append(float(below[place % len(below)]))
        if len(below) > 1:
            ranks.setdefault(f"mean {name}", []).append(float((found.mean(1) < true.mean()).double().mean()))


def _judge_ranks(tested: Evidence, kind: str, ranks: Mapping[str, list[float]], number: int, draws: int = 99) -> None:
    """The truth must rank uniformly among the draws."""
    if not ranks:
        return
    worst, label = 0.0, ""
    limits = STANDARD_ERRORS / math.sqrt(number)
    least, most = _sd_limits(number)
    summary = {}
    for name, found_ranks in ranks.items():
        z = torch.special.ndtri((torch.tensor(found_ranks, dtype=torch.float64) * draws + 0.5) / (draws + 1))
        bias, spread = float(z.mean()), float(z.std().clamp_min(1e-3))
        far = max(
            (abs(bias) - limits * max(spread, 1.0)) / MOST_BIAS,
            math.log(max(spread / most, least / spread)) / math.log(MOST_SPREAD),
        )
        summary[name] = (bias, spread)
        if not label or far > worst:
            worst, label = far, name
    bias, spread = summary[label]
    passed = worst <= 0
    # an encoder that was trained on the data at hand alone need not know others
    say = tested.note if kind == "simulations" else tested.add
    if kind == "refits":
        tested.calibrated = passed
    say(
        kind,
        f"worst of {len(summary)} quantities, {label}: mean {bias:+.2f}, sd {spread:.2f} of {number} {kind}",
        f"0 and 1 within {STANDARD_ERRORS:g} standard errors", passed,
        "Simulated truths look like draws of the guide given their data." if passed
        else f"Given simulated data the guide is off at {label}: {_fault(bias, spread)}.",
        "a richer family of guides; what is wrong here is wrong on data like yours",
    )  # fmt: skip


def _sd_limits(number: int) -> tuple[float, float]:
    """What the sd of so many normal numbers keeps within; of few it is far from normal, downwards more so."""
    from scipy.stats import chi2, norm

    free = number - 1
    tail = norm.sf(STANDARD_ERRORS)
    return math.sqrt(chi2.ppf(tail, free) / free), math.sqrt(chi2.isf(tail, free) / free)


def _fault(bias: float, spread: float) -> str:
    words = f"the truth scatters {spread:.2f} times as wide as they say"
    return words if abs(bias) < MOST_BIAS else f"off by {bias:+.2f} of their sds, and {words}"
