"""What a verdict says, what it rests on, and how findings are weighed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from evaluation.simulation_calibration import CalibrationRanks

TRUST = "trust"


REWEIGH = "use with importance weights"


REJECT = "do not trust"


LEVELS = (TRUST, REWEIGH, REJECT)


#: what is too far off, in posterior standard deviations, and by which factor
MOST_BIAS = 0.2


MOST_SPREAD = 1.25


#: share of the sets of importance weights that must be reliable
RELIABLE = 0.9


#: below this share of effective draws the guide itself, without weights, is too far from the posterior
LEAST_EFFICIENCY = 0.5


#: how many standard errors a deviation must be before it counts
STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        measured: the numbers.
        rule: what they must be.
        passed: whether they are; None where it could not be looked at.
        sentence: what it means.
        weighs: whether the level rests on it; a note does not weigh.
    """

    name: str
    measured: str
    rule: str
    passed: bool | None
    sentence: str
    weighs: bool = True

    @property
    def mark(self) -> str:
        """ "+" holds, "-" does not, "!" does not and is a note, "?" was not looked at."""
        if self.passed is None:
            return "?"
        return "+" if self.passed else "-" if self.weighs else "!"


@dataclass(frozen=True)
class Verdict:
    """The answer to "can I trust this fit?".

    Args:
        level: ``"trust"``, ``"use with importance weights"`` or ``"do not trust"``.
        reason: one sentence.
        findings: what it rests on.
        advice: what to try next.
        numbers: every number by name.
        ranks: ranks of simulated truths, for :func:`evaluation.plots.rank_ecdf_plot`; None where nothing was simulated.
    """

    level: str
    reason: str
    findings: list[Finding]
    advice: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    ranks: CalibrationRanks | None = field(default=None, compare=False, repr=False)

    @property
    def sentence(self) -> str:
        """The reason as a sentence of its own."""
        return self.reason[0].upper() + self.reason[1:]

    def table(self) -> pd.DataFrame:
        """The findings, one row each."""
        word = {"+": "yes", "-": "NO", "!": "no (a note)", "?": "not looked at"}
        return pd.DataFrame(
            [
                {"what": f.name, "measured": f.measured, "rule": f.rule, "holds": word[f.mark], "meaning": f.sentence}
                for f in self.findings
            ]
        )

    def __str__(self) -> str:
        lines = [f"{self.level.upper()}: {self.reason}"]
        lines += [f"  {f.mark} {f.name}: {f.measured}" for f in self.findings]
        return "\n".join(lines + [f"  try: {advice}" for advice in self.advice])


class Evidence:
    """Collects findings, and weighs them at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.findings: list[Finding] = []
        self.numbers: dict[str, float] = {}
        self.advice: list[str] = []
        self.calibrated: bool | None = None
        self.reliable: bool | None = None
        self.predictive: bool | None = None
        self.ranks: CalibrationRanks | None = None

    def add(self, name: str, measured: str, rule: str, passed: bool | None, sentence: str, advice: str = "") -> None:
        self.findings.append(Finding(name, measured, rule, passed, sentence))
        if passed is False and advice:
            self.advice.append(advice)

    def note(self, name: str, measured: str, rule: str, passed: bool, sentence: str, advice: str = "") -> None:
        """A finding that is said, with its advice, and does not weigh."""
        self.findings.append(Finding(name, measured, rule, passed, sentence, weighs=False))
        if not passed and advice:
            self.advice.append(advice)

    def verdict(self) -> Verdict:
        failed = [f for f in self.findings if f.passed is False and f.weighs]
        if not any(f.passed is not None and f.weighs for f in self.findings):
            return Verdict(REJECT, "nothing could be tested.", self.findings, self.advice, self.numbers, self.ranks)
        if not failed:
            what = "posterior draws and predictions are" if self.kind == "posterior" else "predictions are"
            level, reason = TRUST, f"as far as these tests see, {what} calibrated."
            notes = [f.sentence for f in self.findings if f.mark == "!"]
            reason = " ".join([reason, *notes])
        elif self.kind == "posterior" and self.reliable and self.predictive is not False:
            level = REWEIGH
            reason = f"{failed[0].sentence} The importance weights are reliable and mend it."
            self.advice.insert(0, 'draw with sample_posterior(..., correct="psis")')
        else:
            level, reason = REJECT, failed[0].sentence
        return Verdict(level, reason, self.findings, list(dict.fromkeys(self.advice)), self.numbers, self.ranks)
