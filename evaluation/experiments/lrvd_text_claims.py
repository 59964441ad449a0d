"""What is claimed of LRVD on text, and where it stands beside each rival."""

from __future__ import annotations

from typing import Any

import pandas as pd

from evaluation.adapters.rank_analysis import EnergyCurve, energy_curve
from evaluation.experiments.experiment import Check, signed
from evaluation.experiments.lrvd_text_runs import Run

#: rivals that LRVD's numbers are set beside
RIVALS = (
    "LoRA, stopped early",
    "LoRA dropout (MC)",
    "ensemble of 3 LoRA",
    "LoRA, diagonal Laplace",
    "LoRA, Kronecker Laplace",
    "LoRA, training-free noise",
    "PVeRA",
    "MonteCLoRA",
    "BLoB",
    "sparse subspace",
    "AdaLoRA",
    "SoRA",
    "nested dropout",
    "noise alone, α = 1",
    "LRVD, shared σ",
)
#: what is compared once everything has a temperature
OURS = "LRVD, mean"
#: not trained once, or not a rival
ASIDE = ("ensemble of 3 LoRA", "LRVD", "LoRA truncated")
AT_EQUAL_RANK = ("LoRA truncated by magnitude", "LoRA truncated by svd", "nested dropout, truncated")


def energy_curves(run: Run) -> dict[str, tuple[EnergyCurve, EnergyCurve]]:
    """By module the energy of its update in the order of log α, and in the order of size."""
    state, found = run.group("state"), {}
    for module, log_alpha in run.scales()[-1][1].items():
        b, a = (
            next(value for name, value in state.items() if name.endswith(f"{module}.lora_{factor}.default.weight"))
            for factor in "BA"
        )
        by_size = energy_curve(b, a, -(b.norm(dim=0) * a.norm(dim=1)), permutations=1)
        found[module] = energy_curve(b, a, log_alpha), by_size
    return found


def gauge_rows(curves: dict[str, tuple[EnergyCurve, EnergyCurve]], seed: int) -> list[dict[str, Any]]:
    """AUC of the energy of every module's update in the order of log α, beside its bound and two other orders."""
    return [
        {
            "seed": seed,
            "module": module,
            "auc": float(curve.auc),
            "auc_magnitude": float(by_size.auc),
            "auc_random": float(curve.auc_random),
            "auc_svd": float(curve.auc_bound),
            "above_random": float(curve.auc > curve.auc_random),
        }
        for module, (curve, by_size) in curves.items()
    ]


def claims(
    table: pd.DataFrame, lrvd: dict[int, Run], gauge: pd.DataFrame, tempered: pd.DataFrame, judged: bool = True
) -> list[Check]:
    """The acceptance of the method on text, means over seeds, and its differences from every rival.

    Args:
        table: one row a model and seed.
        lrvd: LRVD's runs by seed.
        gauge: one row a seed and module of :func:`gauge_rows`.
        tempered: one row a model, NLL with a temperature beside that of LRVD's posterior mean.
        judged: False reports everything (for runs that are too short to claim anything).
    """
    means = table.groupby("model").mean(numeric_only=True)
    ours, mean, lora = means.loc["LRVD"], means.loc["LRVD, mean"], means.loc["LoRA"]
    total = float(ours["rank"])
    checks: list[Check] = []

    def claim(name: str, criterion: str, measured: str, holds: bool) -> None:
        checks.append(Check(name, criterion, measured, bool(holds) if judged else None))

    ratio = ours.nll / lora.nll
    claim("NLL against LoRA", "<= 0.80 times", f"{ours.nll:.3f} of {lora.nll:.3f}: {ratio:.2f} times", ratio <= 0.8)
    ratio = ours.ece / lora.ece
    claim("ECE against LoRA", "<= 0.50 times", f"{ours.ece:.3f} of {lora.ece:.3f}: {ratio:.2f} times", ratio <= 0.5)
    claim("accuracy less LoRA's", ">= -0.03", signed([ours.acc - lora.acc]), ours.acc >= lora.acc - 0.03)
    gain = mean.nll - ours.nll
    claim("draws against the posterior mean, NLL gained", "> 0", signed([gain]), gain > 0)
    for threshold, most, loss in ((2, 0.85, 0.015), (1, 0.40, 0.04)):
        pruned = means.loc[f"LRVD pruned at {threshold}, mean"]
        share, change = pruned["rank"] / total, pruned.acc - mean.acc
        kept = f"{share:.0%} kept, {change:+.3f}"
        holds = share < most and (abs(change) if threshold == 2 else -change) <= loss
        what = "accuracy within" if threshold == 2 else "accuracy lost at most"
        claim(f"pruned at {threshold}", f"< {most:.0%} of ranks kept, {what} {loss}", kept, holds)
    claim(
        "mutual information is larger on the other corpus",
        "> 0, mean over seeds",
        signed([ours.mi_odd - ours.mi]),
        ours.mi_odd > ours.mi,
    )
    kept_ranks = [float(found.facts["kept_at_1"]) for found in lrvd.values()]
    if len(kept_ranks) > 1:
        middle = sum(kept_ranks) / len(kept_ranks)
        spread = max(abs(k - middle) for k in kept_ranks) / max(middle, 1.0)
        claim(
            "ranks kept at 1 agree over seeds",
            "each within 10 % of their mean",
            f"{', '.join(f'{k:.0f}' for k in kept_ranks)}: {spread:.0%}",
            spread <= 0.10,
        )
    margin, share = (gauge.auc - gauge.auc_random).mean(), gauge.above_random.mean()
    claim(
        "the order of log α carries energy first",
        "AUC above random by > 0.01, in > 60 % of modules",
        f"{margin:+.3f}, {share:.0%}",
        margin > 0.01 and share > 0.6,
    )
    rivals = tempered[~tempered.model.str.startswith(ASIDE)].set_index("model")
    closest = rivals.index[rivals.less_lrvd.argmin()]
    gap, error = -rivals.less_lrvd[closest], rivals.less_lrvd_se[closest]
    claim(
        "all with a temperature: LRVD's mean beside the best single training",
        "NLL at most a standard error above",
        f"{gap:+.3f} ± {error:.3f} ({closest})",
        gap <= error,
    )
    calm = tempered.set_index("model")
    for kappa in ("LRVD", "LRVD, κ = 3"):
        name = f"{kappa} pruned to a tenth, mean"
        if name in calm.index:
            change = calm.nll_T[name] - calm.nll_T[f"{kappa}, mean"]
            share = f"{calm['rank'][name]:.0f} of {total:.0f} ranks"
            checks.append(Check(f"{kappa}, a tenth of the ranks, T", "reported", f"{share}: NLL {change:+.3f}", None))
    for rival in RIVALS:
        if rival in means.index:
            checks.append(_beside(f"LRVD less {rival}", ours, means.loc[rival]))
    pruned = means.loc["LRVD pruned at 1, mean"]
    for rival in AT_EQUAL_RANK:
        checks.append(_beside(f"LRVD pruned at 1 (mean) less {rival}", pruned, means.loc[rival]))
    return checks


def _beside(name: str, ours: pd.Series, theirs: pd.Series) -> Check:
    gaps = [f"{column} {float(ours[column] - theirs[column]):+.3f}" for column in ("acc", "nll", "ece", "nll_T")]
    return Check(name, "reported", ", ".join(gaps), None)
