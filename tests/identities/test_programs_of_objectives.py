"""Every objective that docs/objectives.md writes as a program, against the one that it stands for, draw by draw."""

import re
from pathlib import Path

import pytest
import torch

from guides import AmortisedMeanFieldGuide, BernoulliMaskGuide
from inference.objectives import REGISTRY, log_mean_exp, make
from pp_models import BayesianNetwork, Dataset, MaskedNetwork
from tests.identities.conjugate_gaussian import Conjugate
from tests.identities.test_objective_enumeration import problem

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("### `program`") : PAGE.index("### `iw-em`")]


def only_gradient(value):
    return value - value.detach()


def written(cell):
    """What a cell of the table says in code."""
    return cell.strip().strip("`")


def rows():
    table = SECTION[SECTION.index("| objective | its options |") : SECTION.index("And those that are no program")]
    for line in table.strip().splitlines()[2:]:
        yield tuple(map(written, line.split("|")[1:-1]))


def ragged():
    """Tasks of 4, 2 and no points."""
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 2, 0)
    return Dataset.pad(
        [Dataset(*(torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))) for n in sizes]
    )


def network():
    model = BayesianNetwork([1, 3, 2], likelihood="gaussian-head").double()
    return model, AmortisedMeanFieldGuide(model, 4).double(), ragged(), [*model.parameters()]


def masks():
    model = MaskedNetwork([1, 4, 1], likelihood="gaussian", noise_scale=0.3).double()
    return model, BernoulliMaskGuide(model, 4).double(), ragged(), [*model.parameters()]


def states():
    model, guide, batch = problem()
    return model, guide, batch, [*model.parameters()]


def conjugate():
    pair = Conjugate(3)
    return pair.model, pair.guide, pair.y, list(pair.parameters.values())


PAIRS = {"network": network, "masks": masks, "states": states, "conjugate": conjugate}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("name", "options", "program", "more"), list(rows()))
def test_a_program_is_the_objective(name, options, program, more, pair):
    if "stl" in options and pair in ("masks", "states"):
        return  # the path of a site that has none
    torch.manual_seed(0)
    model, guide, data, parameters = PAIRS[pair]()
    parameters = parameters + [p for p in getattr(guide, "parameters", list)() if all(p is not q for q in parameters)]
    options, more = (eval(f"dict({text})") for text in (options, more))
    given = eval(program, {"log_mean_exp": log_mean_exp, "only_gradient": only_gradient})
    found = []
    for objective in (
        make(name, num_particles=5, **options),
        make("program", num_particles=5, program=given, **more),
    ):
        torch.manual_seed(1)
        bound = objective.terms(model, guide, data).bound
        gradients = torch.autograd.grad(bound.sum(), parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        found.append((bound, torch.cat([g.flatten() for g in gradients])))
    assert found[0][1].abs().max() > 1e-3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)


def test_every_objective_is_in_one_of_the_two_tables():
    assert {name for name in REGISTRY if f"`{name}`" in SECTION} == set(REGISTRY)
    reasons = SECTION[SECTION.index("And those that are no program") :]
    expressed = {name for name, *_ in rows()}
    named = {name for line in reasons.splitlines() if line.startswith("|") for name in re.findall(r"`([\w-]+)`", line)}
    assert set(REGISTRY) - expressed - {"program"} <= named
