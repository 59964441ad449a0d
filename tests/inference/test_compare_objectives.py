"""compare_objectives: its numbers by hand, what it leaves alone, and cells that fail."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO
from torch import nn

from guides import AmortisedMeanFieldGuide
from inference import compare_objectives
from inference.objectives import REGISTRY, TaskELBO, make
from pp_models import BayesianNetwork, Dataset, tasks
from pp_models.observation_model import observe
from pp_models.parameter_module import ParameterModule
from pp_models.task_plates import task_plates


class Level(ParameterModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))

    def forward(self, data):
        with task_plates(data.batch_shape):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            observe(dist.Normal(z[..., None, None].expand(*z.shape, data.num_points, 1), 1.0).to_event(1), data)


class LevelGuide(ParameterModule):
    def __init__(self, normal=dist.Normal, loc=1.0, scale=0.5):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc))
        self.normal, self.scale = normal, scale

    def forward(self, data):
        with task_plates(data.batch_shape):
            pyro.sample("z", self.normal(self.loc, self.scale))


DATA = Dataset(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))


def test_the_ratio_of_signal_to_noise_by_hand():
    """One task, y = 0: ∂ELBO/∂loc by the path is -z for the likelihood, and the KL's is exact."""
    table = compare_objectives(Level(), LevelGuide(), DATA, ["elbo"], num_particles=(1, 16), repeats=1000)
    signal = 1.0 + (1.0 - 0.3)  # E z + (loc - prior loc)
    for row, k in zip(table.itertuples(), (1, 16), strict=True):
        assert row.snr_guide == pytest.approx(signal / (0.5 / math.sqrt(k)), rel=0.15)
        assert row.snr_model == math.inf  # the KL's gradient does not vary
    exact = -0.5 * (1 + 0.25) - 0.5 * math.log(2 * math.pi) - (0.5 * (0.25 + 0.49) - 0.5 + math.log(2))
    assert table["bound"].tolist() == pytest.approx([exact, exact], abs=0.05)
    assert abs(table["bound"][0] - exact) < 5 * table["bound_se"][0]


def test_iwaes_signal_drowns_and_dregs_does_not():
    """Rainforth et al. 2018: the ratio falls like 1/√K; doubly reparameterised it grows (Tucker et al. 2019)."""
    guide = LevelGuide(loc=0.6, scale=0.9)
    table = compare_objectives(Level(), guide, DATA, ["iwae", "dreg"], num_particles=(1, 64), repeats=1000)
    ratios = table.set_index(["objective", "num_particles"])["snr_guide"]
    assert ratios["iwae", 64] < 0.5 * ratios["iwae", 1]
    assert ratios["dreg", 64] > 2 * ratios["dreg", 1]


def test_nothing_is_changed():
    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    guide = AmortisedMeanFieldGuide(model, 8)
    before = [p.detach().clone() for p in guide.parameters()]
    state = torch.get_rng_state()
    table = compare_objectives(model, guide, tasks.gp("rbf", 2).batch(0), num_particles=(2,), repeats=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in guide.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    assert table["objective"].tolist() == list(REGISTRY)
    assert (table["status"] == "ok").all()
    again = compare_objectives(model, guide, tasks.gp("rbf", 2).batch(0), num_particles=(2,), repeats=2)
    assert table["bound"].tolist() == again["bound"].tolist()


def test_a_failing_objective_is_a_row_with_its_reason():
    guide = LevelGuide(NonreparameterizedNormal)
    table = compare_objectives(Level(), guide, DATA, ["dreg", "iwae"], num_particles=(2,), repeats=3)
    assert table["status"].tolist() == ["failed", "ok"]
    assert table["reason"][0].startswith("site 'z': NonreparameterizedNormal cannot be reparameterised")
    assert math.isnan(table["bound"][0]) and 1 <= table["ess"][1] <= 2


def test_ones_own_objectives_and_pyros():
    makers = {"four": lambda k: make("iwae", num_particles=4 * k), "pyro": lambda k: Trace_ELBO(num_particles=k),
              "ours": TaskELBO}  # fmt: skip
    table = compare_objectives(Level(), LevelGuide(), DATA, makers, num_particles=(8,), repeats=200)
    table = table.set_index("objective")
    assert table.loc["four", "ess"] > 8
    assert table.loc["pyro", "bound"] == pytest.approx(table.loc["ours", "bound"], abs=0.1)
    assert math.isnan(table.loc["pyro", "ess"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 1}, r"^repeats: got 1; it must be at least 2$"),
        (
            {"num_particles": (0,)},
            r"^num_particles: got .*; it must hold numbers of particles, and each must be at least 1$",
        ),
        ({"objectives": ["elbow"]}, r"^objective: got 'elbow'; did you mean 'elbo'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        compare_objectives(Level(), LevelGuide(), DATA, **options)
