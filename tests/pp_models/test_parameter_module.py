"""A module's parameters and Pyro's store agree, whatever was loaded, replaced or made before."""

import copy
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from guides import AmortisedMeanFieldGuide
from pp_models import BayesianNetwork, Dataset


def pair(width=8, seed=0):
    torch.manual_seed(seed)
    model = BayesianNetwork([1, 4, 1])
    return model, AmortisedMeanFieldGuide(model, width=width)


def data():
    generator = torch.Generator().manual_seed(1)
    return Dataset(torch.randn(3, 6, 1, generator=generator), torch.randn(3, 6, 1, generator=generator))


def flat(guide):
    return torch.cat([p.detach().flatten().clone() for p in guide.parameters()])


def steps(model, guide, count=2):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(count):
        svi.step(data())


def agree(*modules):
    stored = dict(pyro.get_param_store().named_parameters())
    own = {f"{m.parameter_prefix}.{n}": p for m in modules for n, p in m.named_parameters() if p.requires_grad}
    return own.keys() == stored.keys() and all(stored[name] is p for name, p in own.items())


def test_a_store_that_was_loaded_goes_into_the_module_and_is_trained(tmp_path):
    model, guide = pair()
    steps(model, guide)
    saved = flat(guide)
    pyro.get_param_store().save(tmp_path / "store")
    steps(model, guide)
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    steps(model, guide, 0)
    with pyro.poutine.trace(param_only=True):
        guide(data())
    assert torch.equal(flat(guide), saved) and agree(model, guide)
    steps(model, guide)
    assert not torch.equal(flat(guide), saved) and agree(model, guide)


def test_a_value_set_in_the_store_is_taken_over():
    model, guide = pair()
    steps(model, guide)
    name, parameter = next(iter(guide.named_parameters()))
    pyro.get_param_store()[f"{guide.parameter_prefix}.{name}"] = torch.full_like(parameter, 0.25)
    with pyro.poutine.trace(param_only=True):
        guide(data())
    assert torch.equal(parameter.detach(), torch.full_like(parameter, 0.25)) and agree(model, guide)


def test_a_parameter_that_was_replaced_is_trained():
    model, guide = pair()
    steps(model, guide)
    layer = next(m for m in guide.modules() if isinstance(m, nn.Linear))
    layer.weight = new = nn.Parameter(torch.full_like(layer.weight, 0.5))
    steps(model, guide)
    assert layer.weight is new and bool((new != 0.5).any()) and agree(model, guide)


def test_a_store_of_other_shapes_is_refused_in_one_line(tmp_path):
    model, guide = pair(width=12)
    steps(model, guide)
    pyro.get_param_store().save(tmp_path / "store")
    del model, guide
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    _model, guide = pair(width=8)
    before = flat(guide)
    with pytest.raises(ValueError, match=r"^param store: 'AmortisedMean.*' has shape \[.*clear_param_store"):
        guide.announce_parameters()
    assert torch.equal(flat(guide), before)


def test_a_new_module_does_not_take_the_values_of_one_that_is_gone():
    model, guide = pair()
    steps(model, guide)
    prefix = guide.parameter_prefix
    del model, guide
    _model, guide = pair(seed=3)
    before = flat(guide)
    assert guide.parameter_prefix == prefix
    guide.announce_parameters()
    assert torch.equal(flat(guide), before)


def test_living_modules_and_copies_have_names_of_their_own():
    _model, guide = pair()
    twins = [copy.deepcopy(guide), copy.deepcopy(guide), pair()[1]]
    names = [guide.parameter_prefix, *(t.parameter_prefix for t in twins)]
    assert names == [f"AmortisedMeanFieldGuide_{i}" for i in range(4)]
    assert names == [guide.parameter_prefix, *(t.parameter_prefix for t in twins)]


@pytest.mark.parametrize("made_before", [0, 5])
def test_names_do_not_depend_on_what_the_process_made_before(made_before):
    script = f"""
import gc
gc.disable()
import torch
from tests.pp_models.test_parameter_module import pair
for _ in range({made_before}):
    cycle = [*pair()]
    cycle.append(cycle)
    [m.parameter_prefix for m in cycle[:2]]
    del cycle
    kept = pair()  # alive, and never announced
print(*(m.parameter_prefix for m in pair()))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["BayesianNetwork_0", "AmortisedMeanFieldGuide_0"]
