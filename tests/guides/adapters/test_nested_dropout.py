"""Nested dropout: the law of its masks, and ranks that come out as principal components, in order."""

import pytest
import torch
from torch import nn

from guides import NestedDropoutAdapterGuide, PointAdapterGuide
from guides.adapters.nested_dropout import NestedMask
from inference import fit, predict
from inference.objectives import make
from pp_models import Dataset, LowRankAdapted


def test_masks_are_nested_and_geometric():
    mask = NestedMask(0.3, torch.zeros(4).double())
    every = torch.tril(torch.ones(4, 4).double())
    log_probs = mask.log_prob(every)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.3, 0.21, 0.147, 0.343]).double())
    torch.testing.assert_close(mask.mean, (log_probs.exp().unsqueeze(-1) * every).sum(0))
    assert bool((mask.log_prob(torch.tensor([[0.0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])) == -torch.inf).all())
    draws = mask.expand(torch.Size([2])).sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 2, 4)
    assert float((draws.mean((0, 1)) - mask.mean).abs().max()) < 0.01


def autoencoder(rank=4):
    torch.manual_seed(0)
    backbone = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        backbone.weight.zero_()
    model = LowRankAdapted(nn.Sequential(backbone), ["0"], rank, lora_alpha=rank, likelihood="gaussian")
    for module in model.rank_modules().values():
        nn.init.normal_(module.lora_A, std=0.5)
        nn.init.normal_(module.lora_B, std=0.5)
    return model


def errors(model, guide, data):
    """Squared error a point when the first 1, 2, … ranks are kept."""
    guide.eval()
    found = []
    for guide.keep in range(5):
        mean = predict(model, guide, data, data.x, num_samples=1).mean
        found.append(float((mean - data.x).square().sum(-1).mean()))
    return torch.tensor(found)


def test_of_a_linear_autoencoder_the_first_ranks_are_the_principal_components():
    """Cut at any rank it has the least error of that rank, that of the components left out; plain LoRA has not."""
    torch.manual_seed(1)
    directions = torch.linalg.qr(torch.randn(4, 4))[0]
    x = torch.randn(200, 4) * torch.tensor([2.0, 1.2, 0.7, 0.4]) @ directions.mT
    data = Dataset(x, x)
    values = torch.linalg.svdvals(x).square() / len(x)
    least = torch.stack([values[k:].sum() for k in range(5)])
    found = {}
    for cls in (NestedDropoutAdapterGuide, PointAdapterGuide):
        model = autoencoder()
        guide = cls(model, 0.4) if cls is NestedDropoutAdapterGuide else cls(model)
        objective = make("elbo", num_particles=8, normalize=True)
        options = {"steps": 700, "learning_rate": 2e-2, "schedule": "cosine", "max_grad_norm": 10.0}
        fit(model, guide, data, objective, progress=False, **options)
        cut = NestedDropoutAdapterGuide(model)
        found[cls] = errors(model, cut, data)
    torch.testing.assert_close(found[NestedDropoutAdapterGuide], least, rtol=0.05, atol=0.02)
    assert float(found[PointAdapterGuide][1]) > float(least[1]) + 0.5


def test_in_training_ranks_are_dropped_and_a_wrong_number_is_refused():
    model = autoencoder()
    guide = NestedDropoutAdapterGuide(model, 0.5)
    d = Dataset(torch.randn(3, 4))
    kept = torch.stack([guide(d)["0.rank_scale"] for _ in range(40)])
    assert bool((kept.diff(dim=-1) <= 0).all()) and 1 <= float(kept.sum(-1).mean()) < 4
    guide.eval()
    assert torch.equal(guide(d)["0.rank_scale"], torch.ones(4))
    for options, message in (({"rate": 1.0}, r"^rate: got 1.0"), ({"keep": -1}, r"^keep: got -1")):
        with pytest.raises(ValueError, match=message):
            NestedDropoutAdapterGuide(model, **options)
