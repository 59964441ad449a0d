"""Noise per example: the same bound in expectation and to the digit where noise is fixed, with a quieter gradient."""

import pyro
import pytest
import torch
from torch import nn

import guidebook as gb
from pp_models.adapters.per_example_noise import per_example_noise, rows_with_noise

GUIDES = {
    "rank": lambda m: gb.guides.RankwiseGuide(m, init_log_alpha=0.0),
    "weight_tied": lambda m: gb.guides.RankwiseGuide(m, family="weight_tied", init_log_alpha=-1.0),
    "shared_sigma": lambda m: gb.guides.RankwiseGuide(m, family="shared_sigma", init_log_alpha=-2.0),
    "mean-field": lambda m: gb.guides.AdapterMeanFieldGuide(m, init_scale=0.5),
    "dropout": lambda m: gb.guides.MCDropoutAdapterGuide(m, rate=0.3),
    "rank dropout": lambda m: gb.guides.MCDropoutAdapterGuide(m, rate=0.3, where="rank"),
}


def pair(name="rank", **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    options.setdefault("factor_prior", 0.5)
    model = gb.LowRankAdapted(network, ["0", "2"], rank=2, likelihood="categorical", **options).double()
    for module in model.rank_modules().values():
        nn.init.normal_(module.lora_B, std=0.7)
    return model, GUIDES[name](model).double()


def data(rows=6, tasks=()):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*tasks, rows, 3, generator=generator, dtype=torch.float64)
    return gb.Dataset(x, torch.randint(2, (*tasks, rows), generator=generator))


def bound(per_example, model, guide, d, **options):
    objective = gb.objectives.make("tempered-elbo", noise_per_example=per_example, **options)
    return objective.terms(model, guide, d)


def loss_of(per_example, model, guide, d, **options):
    return gb.objectives.make("tempered-elbo", noise_per_example=per_example, **options).differentiable_loss(
        model, guide, d
    )


@pytest.mark.parametrize("name", GUIDES)
def test_one_row_is_one_draw(name):
    model, guide = pair(name)
    found = []
    for per_example in (False, True):
        torch.manual_seed(3)
        found.append(loss_of(per_example, model, guide, data(1)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["rank", "weight_tied", "mean-field"])
def test_the_kl_is_that_of_the_guide_whatever_the_number_of_rows(name):
    model, guide = pair(name)
    for rows in (1, 6):
        kl = [bound(each, model, guide, data(rows), temperature=3.0).kl for each in (False, True)]
        if name == "weight_tied":  # N(0, 0.5²) to N(μ, α μ²) has a closed form too
            assert torch.isfinite(kl[0]).all()
        torch.testing.assert_close(*kl)


def drawn(per_example, model, guide, d, number):
    """Loss and gradients ``[number, 1 + P]`` of so many draws."""
    parameters = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
    torch.manual_seed(5)
    seen = []
    for _ in range(number):
        loss = loss_of(per_example, model, guide, d)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        seen.append(torch.cat([loss.detach()[None], *(g.flatten() for g in gradients if g is not None)]))
    return torch.stack(seen)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("tasks", [(), (2,)], ids=str)
def test_the_expectation_of_loss_and_gradient_is_that_of_one_draw_a_batch(name, tasks):
    model, guide = pair(name)
    one, own = (drawn(each, model, guide, data(6, tasks), 300) for each in (False, True))
    error = (one.var(0) / len(one) + own.var(0) / len(own)).sqrt() + 1e-12
    assert float(((one.mean(0) - own.mean(0)).abs() / error).max()) < 5


def test_of_equal_rows_the_noise_is_that_of_a_mean():
    model, guide = pair()
    d = data(1)
    equal = gb.Dataset(d.x.repeat(8, 1), d.y.repeat(8))
    one, own = (drawn(each, model, guide, equal, 400).var(0).sum() for each in (False, True))
    assert 8 / 2 < float(one / own) < 8 * 2


def test_every_row_has_its_draw_and_particles_have_theirs():
    """By hand: the handler's draws, put into the layers one row at a time."""
    model, guide = pair()
    d = data(4)
    import pyro

    with per_example_noise(4):
        assert rows_with_noise() == 4
        q = pyro.poutine.trace(guide).get_trace(d)
        outputs = pyro.poutine.replay(model, trace=q)(d)
    assert rows_with_noise() is None
    values = {name: q.nodes[name]["value"] for name in ("0.rank_scale", "2.rank_scale")}
    assert all(value.shape == (4, 2) for value in values.values())
    for row in range(4):
        alone = gb.Dataset(d.x[row : row + 1], None)
        with pyro.condition(data={name: value[row] for name, value in values.items()}):
            torch.testing.assert_close(model(alone)[0], outputs[row])
    loss = loss_of(True, model, guide, d, num_particles=3)
    unfolded, same = pair(fold_draws=False)
    for objective_options in ({"num_particles": 3}, {"num_particles": 1}):
        torch.manual_seed(1)
        folded = loss_of(True, model, guide, d, **objective_options)
        torch.manual_seed(1)
        torch.testing.assert_close(loss_of(True, unfolded, same, d, **objective_options), folded)
    assert torch.isfinite(loss)


def test_masked_rows_count_for_nothing():
    model, guide = pair()
    d = data(6)
    mask = torch.tensor([True, True, False, True, False, True])
    masked = gb.Dataset(d.x, d.y, mask=mask)
    other = gb.Dataset(torch.where(mask[:, None], d.x, 7.0), d.y, mask=mask)
    found = []
    for each in (masked, other):
        torch.manual_seed(2)
        found.append(loss_of(True, model, guide, each))
    torch.testing.assert_close(*found)


def test_a_fit_trains_with_it():
    model, guide = pair()
    objective = gb.objectives.make("tempered-elbo", num_data=60, noise_per_example=True)
    result = gb.fit(model, guide, data(60), objective, steps=40, learning_rate=0.02, progress=False, log_every=1)
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_what_is_refused():
    network = gb.BayesianNetwork([1, 4, 1])
    objective = gb.objectives.make("tempered-elbo", noise_per_example=True)
    d = gb.Dataset(torch.randn(3, 1), torch.randn(3, 1))
    with pytest.raises(ValueError, match="noise_per_example: got True with a model of type BayesianNetwork"):
        objective.terms(network, gb.guides.GaussianVIGuide(network), d)
    for options in ({"kl_reduction": "mean"}, {"estimator": "score"}):
        with pytest.raises(ValueError, match="noise_per_example: got True with"):
            gb.objectives.make("tempered-elbo", noise_per_example=True, **options)
    model, guide = pair()
    import pyro

    with per_example_noise(3):
        q = pyro.poutine.trace(guide).get_trace(data(4))
        with pytest.raises(ValueError, match="per_example_noise: got rows = 3; the model is run on 4"):
            pyro.poutine.replay(model, trace=q)(data(4))


class WithPositions(nn.Module):
    """A network whose layer also reads a row that all examples share, as a DeBERTa's do relative positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("position", torch.ones(1, 3))

    def forward(self, x):
        return self.layer(x) + self.layer(self.position)


def test_what_all_rows_share_has_the_noise_of_the_first():
    torch.manual_seed(0)
    model = gb.LowRankAdapted(WithPositions(), ["layer"], rank=2, likelihood="categorical").double()
    layer = model.rank_modules()["layer"]
    nn.init.normal_(layer.lora_B, std=0.7)
    guide = gb.guides.RankwiseGuide(model, init_log_alpha=0.0).double()
    d = data()
    with per_example_noise(6):
        trace = pyro.poutine.trace(guide).get_trace(d)
        found = pyro.poutine.replay(model, trace=trace)(d)
    z = trace.nodes["layer.rank_scale"]["value"]
    assert z.shape == (6, 2)

    def through(x, scale):
        update = ((x @ layer.lora_A.T) * scale) @ layer.lora_B.T
        return layer.base_layer(x) + update * layer.scaling

    torch.testing.assert_close(found, through(d.x, z) + through(model.backbone.position, z[:1]))
    assert torch.isfinite(loss_of(True, model, guide, d, num_particles=3))
