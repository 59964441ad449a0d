"""Graphs of models with their guides, each under another objective; ``python -m tests.inference.compiled_grid`` is the
whole grid."""

import itertools

import pytest

from evaluation.comparison.families import MODELS
from guides import GUIDES
from inference.objectives import REGISTRY
from tests.inference.compiled_grid import Refused, cell

#: of models that differ from another by an option one guide is enough here
VARIANTS = (
    "network+path",
    "network-learned-prior",
    "network-attention",
    "network-shared-noise",
    "mixture-strict",
    "canp",
)
#: where in the objectives each pair begins, so that all of them are met
PLACES = {pair: place for place, pair in enumerate(itertools.product(MODELS, GUIDES))}


@pytest.mark.parametrize("model", MODELS)
def test_graphs_equal_the_step_itself(model):
    names, met = list(REGISTRY), 0
    for guide in GUIDES:
        start = PLACES[model, guide] % len(names)
        for number, objective in enumerate([*names[start:], *names[:start]]):
            try:
                assert cell(model, guide, objective, masked=(start + number) % 2 == 0) == []
            except Refused:
                continue
            met += 1
            break
        if met and model in VARIANTS:
            break
    assert met
