"""Layers that a network reads by weight, frozen statistics, and layers under two names: in both systems of adapters."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import linear
from transformers import T5Config, T5ForSequenceClassification

from guides import LrvdConfig
from guides.adapters.lrvd_layers import sampling
from pp_models import LowRankAdapted
from tests.guides.adapters.adapted_networks import scatter

SYSTEMS = {
    "ours": lambda net, targets: LowRankAdapted(net, targets, rank=2),
    "peft": lambda net, targets: get_peft_model(net, LrvdConfig(r=2, target_modules=targets)),
}
both = pytest.mark.parametrize("system", SYSTEMS)


class Encoder(nn.Module):
    """An attention layer whose output projection torch reads by weight, and linear layers that it may pass by."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x.reshape(len(x), -1, 8)).mean(1)


class Tied(nn.Module):
    """The second layer is the first one's transpose."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return linear(self.second(x), self.first.weight.mT)


def run(model, x):
    with torch.no_grad():
        return model.outputs(x) if isinstance(model, LowRankAdapted) else model(x)


@both
@pytest.mark.parametrize(
    ("net", "target", "name"), [(Encoder, "out_proj", "layer.self_attn.out_proj"), (Tied, "first", "first")]
)
def test_a_layer_that_is_read_and_never_called_is_refused_by_name(system, net, target, name):
    model = SYSTEMS[system](net(), [target]).eval()
    with pytest.raises(TypeError, match=rf"^targets: '{name}' is never called, .* reads its weight instead") as caught:
        run(model, torch.randn(3, 8))
    assert "\n" not in str(caught.value)


@both
def test_torchs_fast_path_is_not_taken_past_an_adapter(system):
    torch.manual_seed(0)
    net, x = Encoder().eval(), torch.randn(3, 40)
    with torch.no_grad():
        base = net(x)
    model = SYSTEMS[system](copy.deepcopy(net), ["linear1", "linear2"]).eval()
    torch.testing.assert_close(run(model, x), base)
    scatter(model)
    assert float((run(model, x) - base).abs().max()) > 0.01
    if system == "peft":
        with torch.no_grad(), sampling(model, 2, seed=0) as draws:
            first, second = (model(x) for _ in draws)
        assert float((first - second).abs().max()) > 0.001


@both
def test_a_t5_that_asks_for_a_dtype_first_is_adapted(system):
    config = T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, eos_token_id=1
    )
    torch.manual_seed(0)
    net = T5ForSequenceClassification(config).eval()
    x = torch.tensor([[5, 6, 1]])
    with torch.no_grad():
        base = net(input_ids=x, attention_mask=torch.ones_like(x)).logits
    model = SYSTEMS[system](net, ["wo"]).eval()
    scatter(model)
    inner = model.backbone if system == "ours" else model
    with torch.no_grad():
        found = model.outputs(x.float()) if system == "ours" else inner(input_ids=x).logits
    assert float((found - base).abs().max()) > 1e-4


@both
def test_a_layer_that_takes_no_part_is_said_once(system):
    net = nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)})
    net.forward = lambda x: net["used"](x)
    model = SYSTEMS[system](net, ["used", "unused"])
    with pytest.warns(UserWarning, match=r"^targets: 'unused' took no part in the first forward pass"):
        run(model, torch.randn(3, 8))
    run(model, torch.randn(3, 8))


@pytest.mark.parametrize("base_dropout", [False, True])
@both
def test_statistics_of_a_frozen_network_never_move(system, base_dropout):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), torch.randn(5, 8) + 3
    with torch.no_grad():
        base = copy.deepcopy(net).eval()(x)
    if system == "ours":
        model = LowRankAdapted(net, ["0"], rank=2, base_dropout=base_dropout)
        before = model.backbone[1].running_mean.clone()
    else:
        model = get_peft_model(net, LrvdConfig(r=2, target_modules=["0"], noise="none"))
        before = net[1].running_mean.clone()
    model.train()
    torch.testing.assert_close(run(model, x), base)
    assert torch.equal(net[1].running_mean, before) and int(net[1].num_batches_tracked) == 0


def test_statistics_of_a_module_that_is_trained_do_move():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model = LowRankAdapted(net, ["0"], rank=2, base_dropout=True, trainable=["1"]).train()
    run(model, torch.randn(5, 8) + 3)
    assert int(net[1].num_batches_tracked) == 1


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = self.one

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def test_one_layer_under_two_names_has_one_adapter_and_is_said():
    with pytest.warns(UserWarning, match=r"^targets: 'one' and 'two' are one layer, which has one adapter$"):
        model = LowRankAdapted(Twice(), ["one"], rank=2)
    assert model.backbone.one is model.backbone.two and list(model.rank_modules()) == ["one"]
    with pytest.warns(UserWarning, match=r"^target_modules: 'two' and 'one' are one layer, of which peft adapts the"):
        get_peft_model(Twice(), LrvdConfig(r=2, target_modules=["one"]))
