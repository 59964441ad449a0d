"""One pass of an encoder for context and whole task: the same loss and gradients, and nothing embedded in vain."""

import contextlib

import pytest
import torch

import inference.objectives.conditional_prior as conditional_prior
import inference.objectives.npvi as npvi
from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, NeuralProcessGuide
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, NeuralProcess, TaskBatch


def network(guide, **options):
    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head", **options)
    return model, guide(model)


PAIRS = {
    "nvdp": lambda: network(lambda m: BernoulliExpertGuide(m, 8)),
    "nvdp, set transformer": lambda: network(lambda m: BernoulliExpertGuide(m, 8, pooling="set-transformer")),
    "mean field with a path": lambda: network(lambda m: AmortisedMeanFieldGuide(m, 8), representation_dim=8),
    "anp": lambda: (m := NeuralProcess(1, 1, width=8, latent_dim=4, representation_dim=8, attention=True),
                    NeuralProcessGuide(m, 8)),
}  # fmt: skip


def batch_of(masked, context=5):
    x, y = torch.randn(2, 3, 9, 1, dtype=torch.float64)
    mask = torch.rand(3, 9) < 0.8 if masked else None
    if mask is not None:
        mask[:, -1] = True
    whole = Dataset(x, y, mask)
    return TaskBatch(whole.points(slice(0, context)), whole.points(slice(context, None)))


def loss_and_gradients(pair, objective, batch):
    model, guide = pair
    for module in pair:
        module.zero_grad()
    torch.manual_seed(1)
    loss = make(objective)(model, guide)(batch)
    loss.backward()
    return loss.detach(), [p.grad for m in pair for p in m.parameters()]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("objective", ["conditional-prior", "npvi"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_and_its_gradients_are_those_of_two_passes(name, objective, masked, monkeypatch):
    pair = tuple(module.double() for module in PAIRS[name]())
    for context in (5, 1, 0):
        batch = batch_of(masked, context)
        loss, gradients = loss_and_gradients(pair, objective, batch)
        with monkeypatch.context() as patch:
            for module in (conditional_prior, npvi):
                patch.setattr(module, "shared_points", lambda *_: contextlib.nullcontext())
            expected, others = loss_and_gradients(pair, objective, batch)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
        for ours, theirs in zip(gradients, others, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def passes(pair, objective, batch, encoder):
    seen = []
    encoder.points.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    loss_and_gradients(pair, objective, batch)
    return seen


def test_an_encoder_passes_once_over_a_task():
    pair = tuple(module.double() for module in PAIRS["nvdp"]())
    assert passes(pair, "conditional-prior", batch_of(False), pair[1].encoder) == [9]


def test_a_guide_that_draws_nothing_reads_the_context_alone():
    model = NeuralProcess(1, 1, width=8, latent_dim=0, representation_dim=8).double()
    guide = NeuralProcessGuide(model, 8).double()
    assert passes((model, guide), "conditional-prior", batch_of(False), guide.path_encoder) == [5]
