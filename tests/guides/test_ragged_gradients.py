"""Gradients of every pair under every objective on ragged batches: finite, and those of the points that exist."""

import pytest
import torch

from inference.objectives import REGISTRY, make
from pp_models import Dataset, TaskBatch
from tests.guides.guide_table import ROWS
from tests.guides.test_guides import padded

every_guide = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
FULL, SOME, ONE, NONE = [True] * 4, [True, False, True, False], [False, True, False, False], [False] * 4


def ragged(row):
    """Batches of three tasks of other sizes, by what is odd about them."""

    def points(*masks):
        return row.data(3, n=4, mask=torch.tensor(masks))

    return {
        "a task without context, another without target": TaskBatch(points(FULL, SOME, NONE), points(SOME, NONE, FULL)),
        "no context at all": TaskBatch(row.data(3, n=0), points(FULL, SOME, SOME)),
        "all of the context masked": TaskBatch(points(NONE, NONE, NONE), points(FULL, SOME, SOME)),
        "a data set": points(ONE, FULL, NONE),
    }


@every_guide
def test_gradients_are_finite_or_the_pair_is_refused_in_one_line(row):
    trained = 0
    for name in REGISTRY:
        for what, batch in ragged(row).items():
            model, guide = row.make()
            # local reparameterisation is for points that do not see one another
            attentive = {} if model.independent_points else {"local_reparameterization": False}
            objective = make(name, num_particles=2, **(attentive if name == "conditional-prior" else {}))
            try:
                loss = objective.differentiable_loss(model, guide, batch)
            except ValueError as error:
                assert "\n" not in str(error), (name, what)
                continue
            assert bool(torch.isfinite(loss)), (name, what)
            parameters = dict([*model.named_parameters(prefix="model"), *guide.named_parameters(prefix="guide")])
            if not any(p.requires_grad for p in parameters.values()):
                continue
            loss.backward()
            gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
            bad = [n for n, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
            assert bad == [], (name, what)
            trained += sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0
    parameters = [*row.make()[0].parameters(), *row.make()[1].parameters()]
    assert trained >= (4 if any(p.requires_grad for p in parameters) else 0)  # one objective on all four batches


def gradients_of(pair, objective, batch):
    for module in pair:
        module.zero_grad()
    torch.manual_seed(7)
    loss = objective.differentiable_loss(*pair, batch)
    if loss.requires_grad:
        loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for m in pair for p in m.parameters()]
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("which", ["elbo", "its own"])
@every_guide
def test_padding_changes_no_gradient(row, which, monkeypatch):
    if "seeded by the set" in row.exempt:  # the objective's own noise is then another; see the identities of its form
        assert row.exempt["seeded by the set"]
        return
    name = row.objective if which == "its own" or "elbo" in row.exempt else "elbo"
    # a conjugate layer draws a noise for each point in training; tests/guides/networks has those draws
    monkeypatch.setattr("guides.networks.conjugate_layer.perturbation", lambda *arguments: None)
    pair, context, target = row.make(), row.data(3), row.data(3)
    wide = TaskBatch(padded(context)[0], padded(target)[0])
    # local reparameterisation draws a noise for each point
    options = {"local_reparameterization": False} if name == "conditional-prior" else {}
    objective = make(name, num_particles=2, **options)
    expected = gradients_of(pair, objective, TaskBatch(context, target))
    found = gradients_of(pair, objective, wide)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_junk_behind_a_mask_reaches_no_gradient():
    """What a batch was built of, before the mask hid it, is forgotten: NaN and infinity included."""
    x, y = torch.full((2, 3, 1), torch.nan), torch.full((2, 3, 1), torch.inf)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    x[0, 0], y[0, 0] = 0.5, -0.5
    pair = ROWS["bnn dual"].make((2,), torch.float32)
    clean = (torch.where(mask.unsqueeze(-1), t, torch.zeros_like(t)) for t in (x, y))
    found, expected = (gradients_of(pair, make("elbo"), Dataset(*each, mask)) for each in ((x, y), clean))
    assert sum(float(gradient.abs().sum()) for gradient in expected[1:]) > 1.0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
