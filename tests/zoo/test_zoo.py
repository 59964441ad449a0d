"""Objectives on other people's programs: the quick part. ``make zoo`` runs every objective, with many more draws."""

import logging

import pytest

from tests.zoo.comparison import OBJECTIVES, applicable, check, evidence_error, fresh, notice, splits
from tests.zoo.mutations import MUTATIONS
from tests.zoo.programs import CASES

#: as Pyro's own losses say of an observed site of a guide
pytestmark = pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide but not model")

REPEATS = 20
#: standard errors of so few repeats are themselves uncertain
LIMIT = 8.0
KNOWN = {}


def quick(case_name):
    """Two of the objectives that apply, others from case to case, at once and one by one."""
    names = applicable(fresh(case_name))
    at = sorted(CASES).index(case_name)
    chosen = [(("elbo", "iwae")[at % 2], at % 4 < 2), (names[at % len(names)] if names else "", at % 4 >= 2)]
    return list(dict.fromkeys((name, vectorize) for name, vectorize in chosen if name in names))


PAIRS = [(case, name, vectorize) for case in CASES for name, vectorize in quick(case)]


@pytest.mark.parametrize(("case", "name", "vectorize"), PAIRS)
def test_value_and_gradient_are_the_references(case, name, vectorize):
    assert check(case, name, vectorize, REPEATS, KNOWN, LIMIT) == ""


@pytest.mark.parametrize(("case", "name"), [(c, n) for c in CASES for n in OBJECTIVES if n in fresh(c).refused])
def test_refusals_are_one_line(case, name):
    assert check(case, name, True, 1, KNOWN) == ""


@pytest.mark.parametrize("case", [c for c in CASES if "iwae" in applicable(fresh(c))])
def test_bounds_split_along_independent_plates_alone(case, caplog):
    """And particles are run one by one only where the program asks for it, which is said in one line."""
    with caplog.at_level(logging.WARNING, "guidebook"):
        found, ties = splits(case)
    assert found == set(fresh(case).split)
    assert not found & set(ties)
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert len(said) == fresh(case).apart
    assert all("a[..., idx]" in line and "\n" not in line for line in said)


def test_what_ties_a_plate_is_named():
    assert splits("neighbours_in_a_plate")[1] == {"data": "x"}
    assert splits("varying_intercepts_at_once")[1] == {"groups": "centre", "data": "centre"}
    assert splits("own_plate_particles")[1] == {"particles": "z"}


KNOWN_EVIDENCE = [
    name for name in CASES if fresh(name).evidence is not None and not fresh(name).apart and not name.startswith("Auto")
]


@pytest.mark.parametrize("case", [name for name in KNOWN_EVIDENCE if name != "subsampled_locals"])
def test_many_particles_come_to_the_evidence(case):
    assert abs(evidence_error(case, 1000)) < 0.2


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_fault_put_back_is_noticed(fault, monkeypatch):
    mutation = MUTATIONS[fault]
    mutation.apply(monkeypatch)
    assert notice(mutation, mutation.repeats, LIMIT) != ""
