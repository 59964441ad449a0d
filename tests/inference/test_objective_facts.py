"""What stands on an objective's class, what it remembers of a pair, and what its terms say about a program."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from guides import AmortisedMeanFieldGuide
from inference import fit
from inference.objectives import REGISTRY, make
from pp_models import BayesianNetwork, tasks

X = torch.tensor([1.5, -0.7, 2.0])


def bottom_up():
    def model(x):
        with pyro.plate("data", 3):
            upper = pyro.sample("upper", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("lower", dist.Normal(upper, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            lower = pyro.sample("lower", dist.Normal(0.5 * x, 0.8))
            pyro.sample("upper", dist.Normal(0.5 * lower, 0.7))

    return model, guide


def test_facts_stand_on_the_classes():
    facts = {name: type(make(name)) for name in REGISTRY}
    assert {n for n, c in facts.items() if c.weighs_particles} == {
        *("iw-em", "iwae", "dreg", "renyi", "rws", "chi2", "f-divergence", "log-variance", "program")
    }
    assert {n for n, c in facts.items() if c.guide_is == "predictor"} == {"iw-em", "conditional-prior", "npvi", "npml"}
    of_data = {n for n, c in facts.items() if c.needs == "data set"}
    assert of_data == {"iw-em", "conditional-prior", "npvi", "npml", "pp-avi"}
    for name in of_data:
        with pytest.raises(TypeError, match=r"^data: got str; this objective needs a TaskBatch or a Dataset$"):
            make(name).terms(*bottom_up(), "data")
    assert all((c.proposal, c.inner_steps) == (None, 1) for c in facts.values())
    assert (make("iw-em", inner_steps=3).inner_steps, make("iw-em").proposal) == (3, "prior")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("npml", "beta", r"^beta: got 1.0; npml has no KL to weigh$"),
        ("npml", "local_reparameterization", r"^local_reparameterization: got 1.0; .* one coherent draw"),
        ("pp-avi", "local_reparameterization", r"^local_reparameterization: got 1.0; .* one coherent draw"),
        ("iw-em", "on", r"^on: iw-em always gives its guide the context"),
    ],
)
def test_options_that_an_objective_has_not(name, option, message):
    with pytest.raises(ValueError, match=message):
        make(name, **{option: 1.0})


def test_the_librarys_own_models_are_run_once_a_step_from_the_first():
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    guide = AmortisedMeanFieldGuide(model, 8)
    calls = []
    for module in (model, guide):
        module.register_forward_hook(lambda *_: calls.append(1))
    for name in ("elbo", "iwae", "rws", "chi2"):
        calls.clear()
        make(name, num_particles=4).terms(model, guide, tasks.gp("rbf", 2).batch(0))
        assert len(calls) == 2


def test_other_programs_are_looked_into_once():
    model, guide = bottom_up()
    calls = []

    def counted(x):
        calls.append(1)
        return model(x)

    objective = make("iwae", num_particles=4)
    objective.loss(counted, guide, X)
    first = len(calls)
    calls.clear()
    objective.loss(counted, guide, X)
    assert first > len(calls) == 1
    assert copy.deepcopy(objective)._pairs.known == pickle.loads(pickle.dumps(objective))._pairs.known == {}


def test_a_pair_made_anew_at_every_step_is_logged_once(caplog):
    def pair():
        def guide(x):
            with pyro.plate("steps", 3):
                pyro.sample("z", dist.Normal(x, 1.0))

        def model(x):
            with pyro.plate("steps", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 3):
                pyro.sample("x", dist.Normal(z.cumsum(0), 1.0), obs=x)

        return model, guide

    objective = make("iwae", num_particles=3)
    with caplog.at_level("WARNING", "guidebook"):
        for _ in range(3):
            objective.loss(*pair(), X)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("particles of this model and guide are run one by one, for site 'x' has another density")


def test_the_experiments_leave_the_random_state_alone():
    draws = []
    for name in ("elbo", "iwae"):
        objective = make(name, num_particles=4, max_plate_nesting=1)
        for _ in range(2):  # the first call looks into the pair, the second does not
            torch.manual_seed(5)
            objective.loss(*_pair, X)
            draws.append(torch.rand(()).item())
    assert len(set(draws)) == 1


_pair = bottom_up()


def test_terms_say_what_was_analytic_and_what_was_split():
    terms = make("elbo").terms(*bottom_up(), X)
    assert terms.analytic == ("upper",)
    assert terms.independent.plates == ("data",) and terms.independent.ties == {}
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    own = make("elbo").terms(model, AmortisedMeanFieldGuide(model, 8), tasks.gp("rbf", 2).batch(0))
    assert set(own.analytic) == set(own.kl_by_site) and own.independent.plates == ("tasks",)


def test_the_loss_with_gradients_is_a_number_as_pyros():
    ours, theirs = (loss.loss_and_grads(*bottom_up(), X) for loss in (make("elbo"), Trace_ELBO()))
    assert isinstance(ours, float) and isinstance(theirs, float)


def test_a_tensor_is_no_stream_of_tasks():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, y):
            return pyro.sample("y", dist.Normal(self.loc, 1.0), obs=y)

    with pytest.raises(TypeError, match=r"^tasks: got a Tensor of shape \(3,\), whose rows would be trained on one by"):
        fit(Model(), Model(), X, "elbo", steps=2, progress=False)
