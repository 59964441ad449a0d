"""Meta-modulation: the plain network at zero, the prior without a context, classes renumbered, and what it learns."""

import pyro
import pytest
import torch

import guidebook as gb
from guides import ContextPointsGuide, ModulationGuide
from pp_models import ConvEmbedding, Dataset, FiLMNetwork, ModulatedPrototypicalNetwork, PrototypicalNetwork


def build(embedding=None, dim=4, classes=3, width=8):
    torch.manual_seed(0)
    model = ModulatedPrototypicalNetwork(dim, classes, embedding or FiLMNetwork([dim, 6, 5, 4], "tanh"))
    return model.double(), ModulationGuide(model, width).double()


def data(*batch, n=9, dim=4, classes=3):
    return Dataset(torch.randn(*batch, n, dim).double(), torch.randint(0, classes, (*batch, n)))


def outputs(model, context, x, values):
    """Logits at x given a context and modulations by site."""
    memory = pyro.poutine.trace(ContextPointsGuide(model)).get_trace(context).nodes["memory"]["value"]
    return pyro.condition(model, values | {"memory": memory})(Dataset(x))


def modulations(model, *batch, scale=1.0):
    return {model.site(i): scale * torch.randn(*batch, 2 * w).double() for i, w in enumerate(model.widths)}


@pytest.mark.parametrize("embedding", [None, ConvEmbedding((4, 4), 1, 4, 2)], ids=["film", "pictures"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_no_modulation_is_the_plain_prototypical_network(embedding, batch):
    dim = 16 if embedding else 4
    model, _ = build(embedding, dim)
    plain = PrototypicalNetwork(dim, 3, model.embedding).double()
    context, x = data(*batch, dim=dim), torch.randn(*batch, 5, dim).double()
    found = outputs(model, context, x, modulations(model, *batch, scale=0.0))
    assert torch.equal(found, outputs(plain, context, x, {}))
    assert not torch.allclose(found, outputs(model, context, x, modulations(model, *batch)))


def test_a_modulated_picture_by_hand():
    embedding = ConvEmbedding((4, 6), 2, 4, 1).double()
    x, found = torch.randn(3, 5, 48).double(), torch.randn(3, 8).double()
    convolution, norm, _, pool = embedding.layers
    picture = x[1, 2].reshape(4, 6, 2).permute(2, 0, 1).unsqueeze(0)
    scale, shift = found[1, :4].reshape(4, 1, 1), found[1, 4:].reshape(4, 1, 1)
    by_hand = pool(torch.relu((1 + scale) * norm(convolution(picture)) + shift)).flatten()
    torch.testing.assert_close(embedding(x, [found])[1, 2], by_hand)


def test_tasks_and_particles_are_modulated_each_on_its_own():
    model, _ = build()
    context, x = data(2), torch.randn(2, 5, 4).double()
    values = modulations(model, 6, 2)
    together = pyro.plate("particles", 6, dim=-2)(lambda: outputs(model, context, x, values))()
    for k in range(6):
        for t in range(2):
            alone = outputs(model, context[t], x[t], {site: value[k, t] for site, value in values.items()})
            torch.testing.assert_close(together[k, t], alone)


def sites(guide, d):
    nodes = pyro.poutine.trace(guide).get_trace(d).nodes
    return {name: node["fn"].base_dist for name, node in nodes.items() if name.startswith("modulation")}


def test_without_a_context_it_is_the_prior_and_the_kl_is_zero():
    model, guide = build()
    none = [data(2, n=0), Dataset(data(2).x, data(2).y, torch.zeros(2, 9, dtype=torch.bool))]
    for d in none:
        for fn in sites(guide, d).values():
            assert bool((fn.loc == 0).all()) and torch.allclose(fn.scale, torch.full_like(fn.scale, 0.5))
    terms = gb.objectives.make("elbo").terms(model, guide, none[1])
    assert all(bool((kl.abs() < 1e-12).all()) for kl in terms.kl_by_site.values())
    for fn in sites(guide, data(2)).values():
        prior = torch.distributions.Normal(torch.zeros_like(fn.loc), 0.5)
        assert bool((torch.distributions.kl_divergence(fn, prior).sum(-1) > 0).all())


def test_classes_renumbered_are_the_same_task():
    model, guide = build()
    d, order = data(2), torch.tensor([2, 0, 1])
    values = modulations(model, 2)
    renumbered = Dataset(d.x, order[d.y])
    conditioned = pyro.condition(guide, values)
    for (name, fn), other in zip(sites(conditioned, d).items(), sites(conditioned, renumbered).values(), strict=True):
        torch.testing.assert_close(fn.loc, other.loc, msg=name)
        torch.testing.assert_close(fn.scale, other.scale, msg=name)
    x = torch.randn(2, 5, 4).double()
    found, other = (outputs(model, each, x, values) for each in (d, renumbered))
    torch.testing.assert_close(other[..., order], found)


@pytest.mark.parametrize("name", ["elbo", "npvi", "conditional-prior", "npml", "iw-em", "iwae", "rws"])
def test_every_objective_trains_it(name):
    model, guide = build()
    batch = gb.TaskBatch(data(2), data(2))
    loss = gb.objectives.make(name, num_particles=2).differentiable_loss(model, guide, batch)
    loss.backward()
    assert torch.isfinite(loss)
    moved = [*model.parameters(), *guide.parameters()]
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in moved)
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in guide.heads.parameters())


def test_it_is_saved_with_its_embedding(tmp_path):
    for embedding, dim in ((None, 4), (ConvEmbedding((4, 4), 1, 4, 2), 16)):
        model, guide = build(embedding, dim)
        folder = tmp_path / str(dim)
        gb.save(folder, model, guide)
        again = gb.load(folder)[:2]
        d = data(2, dim=dim)
        first, second = (gb.predict(*pair, d, d.x, 3, seed=0).mean for pair in ((model, guide), again))
        assert torch.equal(first, second)


def test_what_it_is_not_for_is_refused():
    with pytest.raises(TypeError, match="ModulationGuide is a guide for a ModulatedPrototypicalNetwork"):
        ModulationGuide(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"^embedding: got Linear.*; it must be a Modulated, such as a FiLMNetwork or"):
        ModulatedPrototypicalNetwork(1, 2, torch.nn.Linear(1, 1))


def test_training_tells_new_classes_apart_better_than_an_untrained_network():
    torch.manual_seed(0)
    centres = torch.randn(40, 1, 6)
    x = (centres + 0.5 * torch.randn(40, 10, 6)).flatten(0, 1)
    labels = torch.arange(40).repeat_interleave(10)
    train = gb.tasks.from_few_shot(x, labels, ways=3, shots=2, queries=3)
    test = gb.tasks.from_few_shot(x, labels, split="test", ways=3, shots=2, queries=5, batch_size=32).batch(0)
    for seed in range(3):
        torch.manual_seed(seed)
        model = ModulatedPrototypicalNetwork(6, 3, FiLMNetwork([6, 16, 8]))
        guide = ModulationGuide(model, 16)
        scores = [score(model, guide, test)]
        objective = gb.objectives.make("npvi", kl_reduction="sum", normalize=True)
        stream = gb.tasks.interpolated(train)
        gb.fit(model, guide, stream, objective, steps=100, learning_rate=1e-2, progress=False)
        scores.append(score(model, guide, test))
        assert scores[1] > scores[0] + 0.1


def score(model, guide, batch):
    with torch.no_grad():
        return float(gb.predict(model, guide, batch.context, batch.target.x, 8, seed=0).log_prob(batch.target.y).mean())
