"""500 calls of the public surface with right and wrong arguments: each is right, or refused in one line."""

import logging

import numpy as np
import pytest
import torch

import guidebook as gb
from tests.fuzz.running import DEPTHS, NONSENSE, REFUSED, RIGHTLY, Surface, fuzz, judge
from tests.fuzz.surface import surface
from tests.fuzz.values import is_wrong_kind

#: what takes seconds a call is left to ``make fuzz``
SLOW = {"nuts", "write_zarr", "guidebook fit", "verdict", "compare", "tasks.multi_output", "tasks.images"}
SLOW |= {"load_pretrained", "pretrained"}


def test_every_call_is_right_or_refused_in_one_line():
    logging.disable(logging.WARNING)
    try:
        report = fuzz([one for one in surface() if one.name not in SLOW], 500)
    finally:
        logging.disable(logging.NOTSET)
    assert report.bad == 0, "\n".join(report.lines())
    assert report.counts[RIGHTLY] >= 100 and report.counts[REFUSED] >= 200


def test_the_surface_has_every_public_callable():
    called = {one.name.rsplit(".", 1)[-1] for one in surface()}
    public = {name for name in gb.__all__ if callable(getattr(gb, name))}
    # results, errors, contracts and distributions are made by the library; plots draw what other calls checked
    made = {
        "CheckpointError", "DataError", "ExpertMixture", "FileError", "FitResult", "FramePrediction", "Guide",
        "Interrupted", "Likelihood", "Saved",
        "LogSpaceDirichlet", "LrvdTrainerMixin", "Model", "NutsResult", "Prediction", "Pretrained", "RankPruning",
        "StickBreaking", "TaskObjective", "TrainingDiverged", "BernoulliLikelihood", "CategoricalLikelihood",
        "summarise",
    }  # fmt: skip
    # fits of other kinds, whose arguments have tests of their own
    fits = {"IVON", "collapse", "gaussian_vi", "ivon_guide", "likelihood_ratio", "match_prior", "sgmcmc"}
    assert public - made - fits <= called, public - made - fits - called


def a_call(call, **right):
    return Surface("call", call, right)


@pytest.mark.parametrize(
    ("call", "values", "wrong", "outcome"),
    [
        (lambda steps: None, {"steps": 1}, (), RIGHTLY),
        (lambda steps: [][0], {"steps": 1}, (), DEPTHS),
        (lambda steps: int("x"), {"steps": "x"}, ("steps",), DEPTHS),
        (lambda steps: torch.ones(2) @ torch.ones(3), {"steps": "x"}, ("steps",), DEPTHS),
        (lambda steps: (_ for _ in ()).throw(ValueError("steps: got 1\nsecond line")), {"steps": 1}, (), DEPTHS),
        (lambda steps: (_ for _ in ()).throw(ValueError("steps: got 'x'; it must be 1")), {"steps": 1}, (), REFUSED),
        (lambda steps: torch.tensor(float("nan")), {"steps": 1}, (), NONSENSE),
    ],
)
def test_outcomes_are_told_apart(call, values, wrong, outcome):
    assert judge(a_call(call), values, wrong)[0] == outcome


def test_what_is_taken_though_of_a_wrong_kind_is_nonsense():
    def call(steps: "int", loud: "bool" = False, rate: "float | None" = None):
        return steps

    parameters = a_call(call).parameters()
    assert judge(a_call(call), {"steps": 2.5}, ("steps",)) == (NONSENSE, "steps of a wrong kind is taken")
    assert [is_wrong_kind(parameters["steps"], v) for v in (1, np.int64(1), True, 2.5, "1", None)] == [
        False, False, True, True, True, True,
    ]  # fmt: skip
    assert [is_wrong_kind(parameters["rate"], v) for v in (1, 0.5, None, float("inf"), "no")] == [
        False, False, False, True, True,
    ]  # fmt: skip
    assert is_wrong_kind(parameters["loud"], "no") and not is_wrong_kind(parameters["loud"], True)
