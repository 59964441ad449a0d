"""Frozen weights in half precision: what is rounded, what is not, and what is refused."""

import logging

import peft
import pytest
import torch
from torch import nn

import guidebook as gb
from pp_models.adapters.half_frozen import HalfFrozenLinear, half_cost, half_frozen


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))


def adapted():
    model = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["3"]))
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.1)
    return model


def test_frozen_layers_alone_are_rounded_and_activations_keep_their_precision():
    model, x = adapted(), torch.randn(5, 6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    exact = model(x)
    assert half_frozen(model) == 2  # the layer under the adapter, and the saved head's original
    for name, parameter in model.named_parameters():
        half = name.endswith(("base_layer.weight", "base_layer.bias")) or "original_module" in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
        assert torch.equal(parameter.float(), before[name].to(parameter.dtype).float())
    found = model(x)
    assert found.dtype == torch.float32
    error = (found - exact).abs().max()
    assert 0 < error < 0.05
    # by hand: the frozen product alone is rounded
    layer = model.base_model.model[0]
    frozen = (x.bfloat16() @ layer.base_layer.weight.T + layer.base_layer.bias).float()
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T * layer.scaling["default"]
    torch.testing.assert_close(layer(x), frozen + update, atol=2e-2, rtol=0)


def test_gradients_are_those_of_single_precision_but_for_rounding():
    gradients = []
    for half in (False, True):
        model, x = adapted(), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        if half:
            half_frozen(model)
        model(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 4
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() < 0.02 * exact.norm(), name


def test_guides_and_saved_adapters_go_on(tmp_path):
    config = gb.guides.LrvdConfig(r=2, target_modules=["0", "3"])
    model = peft.get_peft_model(network(), config)
    x = torch.randn(4, 6)
    half_frozen(model)
    with gb.adapters.sampling(model, 3, seed=0) as draws:
        assert torch.stack([model(x) for _ in draws]).shape == (3, 4, 3)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(network(), tmp_path / "adapter").eval()
    half_frozen(again)
    torch.testing.assert_close(again(x), model(x))
    ours = gb.LowRankAdapted(network(), ["0"], rank=2, likelihood="categorical")
    assert half_frozen(ours) == 2
    guide = gb.guides.RankwiseGuide(ours)
    data = gb.Dataset(x, torch.tensor([0, 1, 2, 1]))
    result = gb.fit(ours, guide, data, "elbo", steps=2, progress=False)
    assert torch.tensor([row["loss"] for row in result.history]).isfinite().all()


def test_a_head_that_is_tied_to_the_embeddings_is_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.middle(self.embedding(ids)))

    model = Tied().requires_grad_(False)
    assert half_frozen(model) == 1
    assert model.head.weight is model.embedding.weight and model.head.weight.dtype == torch.float32
    assert model(torch.arange(7)).dtype == torch.float32
    shared = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).requires_grad_(False)
    shared[2].weight = shared[0].weight
    assert half_frozen(shared) == 2 and shared[2].weight is shared[0].weight
    assert shared(torch.randn(2, 4)).dtype == torch.float32


def test_whole_saves_and_copies_keep_the_kind_of_layer():
    import copy

    model = adapted()
    half_frozen(model)
    twin = copy.deepcopy(model)
    assert isinstance(twin.base_model.model[0].base_layer, HalfFrozenLinear)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (network, "has no frozen float32 Linear; freeze it, or adapt it"),
        (lambda: network().requires_grad_(False).double(), "has no frozen float32 Linear"),
    ],
)
def test_what_is_refused(model, line):
    with pytest.raises(ValueError, match=line):
        half_frozen(model())


def test_a_merged_adapter_is_refused():
    model = adapted()
    model.merge_adapter()
    with pytest.raises(ValueError, match="an adapter is merged into the weights"):
        half_frozen(model)
    with pytest.raises(ValueError, match="dtype: got 'float32'"):
        half_frozen(adapted(), "float32")


@pytest.mark.parametrize(("cost", "said"), [(7.2, True), (0.6, False)])
def test_a_cpu_that_is_slower_with_it_is_told_so(monkeypatch, caplog, cost, said):
    monkeypatch.setattr("pp_models.adapters.half_frozen.half_cost", lambda dtype: cost)
    model = nn.Linear(4, 4).requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="guidebook"):
        gb.adapters.half_frozen(nn.Sequential(model))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(";")[0] for line in lines] == [
        "half_frozen: a product in bfloat16 takes this CPU 7.2 times as long as in float32"
    ] * said


def test_the_cost_is_measured_on_a_cpu_alone():
    assert half_cost() > 0 and half_cost(device="cuda") == 0.5
