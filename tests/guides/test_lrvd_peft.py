"""LRVD inside Hugging Face's peft: noise, saving, loading, several adapters, refusals."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from guides.lrvd_families import FAMILIES, factor_scales, family_kl, noisy_output
from guides.lrvd_layers import kl_divergence, lrvd_modules, rank_log_alpha, sampling
from guides.lrvd_peft import LrvdConfig, LrvdLinear, lrvd_load
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, tiny_gpt2, token_ids

ROOT = Path(__file__).parents[2]
every_family = pytest.mark.parametrize("family", FAMILIES)


def scatter(model, scale=0.3, log_alpha=-1.0):
    """Gives every adapter weights and noise levels that matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_lrvd_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) + log_alpha - 3 * ("variance" in name))
            elif "lora_" in name:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model


def adapted(family="rank", r=4, base=None, **options):
    options = {"target_modules": BERT_TARGETS, "lora_alpha": 7} | options
    return get_peft_model(tiny_bert() if base is None else base, LrvdConfig(r=r, family=family, **options)).eval()


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


class Net(nn.Module):
    """Two linear layers."""

    def __init__(self, k_in=6, k_out=3):
        super().__init__()
        self.first, self.second = nn.Linear(k_in, 8), nn.Linear(8, k_out)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def one_layer(family="rank", k_in=5, k_out=4, r=3, **options):
    """A single adapted layer, scattered, with its state."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(k_in, k_out)), LrvdConfig(r=r, family=family, target_modules=["0"], **options)
    )
    scatter(model, 0.5)
    (module,) = lrvd_modules(model).values()
    return model, module.lrvd_state("default"), module.update_scale()


# -- what a layer computes ---------------------------------------------------------------------------------------------


@every_family
def test_a_fresh_adapter_changes_nothing_but_where_weights_must_not_be_zero(family):
    moved = float((logits(adapted(family)) - logits(tiny_bert())).abs().max())
    assert moved < 1e-3 if family in ("shared_sigma", "untied") else moved == 0.0


@pytest.mark.parametrize("noise", ["call", "sequence", "token"])
def test_the_variance_is_that_of_the_formula(noise):
    model, state, s = one_layer()
    model.eval()
    x = torch.randn(1, 5)
    with torch.no_grad(), sampling(model, seed=0, noise=noise):
        rows = x.expand(20_000, 5)
        if noise == "call":
            y = torch.stack([model(x) for _ in range(4000)]).squeeze(1)
        else:
            y = model(rows.unsqueeze(1)).squeeze(1) if noise == "sequence" else model(rows)
        hidden, alpha = state.lora_A @ x[0], state.parameters["log_alpha"].exp()
        expected = s**2 * (state.lora_B * (alpha * hidden**2)) @ state.lora_B.T
    found = torch.cov(y.T)
    assert float((found - expected).norm() / expected.norm()) < (0.08 if noise == "call" else 0.03)
    assert float((y.mean(0) - model(x)[0]).detach().norm() / expected.diag().sum().sqrt()) < 0.05


def test_variance_outside_the_row_space_of_A():
    for family, positive in {"rank": False, "weight_tied": True, "shared_sigma": True, "asym": True}.items():
        model, state, _ = one_layer(family)
        model.eval()
        *_, v = torch.linalg.svd(state.lora_A.detach())
        x = v[-1:]  # orthogonal to the three rows
        with torch.no_grad(), sampling(model, seed=0, noise="sequence"):
            spread = model(x.expand(200, 1, 5).contiguous()).var(0).sum()
            bigger = model((3 * x).expand(200, 1, 5).contiguous()).var(0).sum()
        assert (float(spread) > 1e-4) == positive
        if positive:
            assert 6 < float(bigger / spread) < 13  # as |x|²: 9


@every_family
@pytest.mark.parametrize("noise", ["call", "sequence"])
def test_drawn_weights_have_the_moments_of_their_family(family, noise):
    model, state, s = one_layer(family)
    model.eval()
    x = torch.randn(5)
    with torch.no_grad():
        with sampling(model, seed=1, noise=noise):
            if noise == "call":
                y = torch.stack([model(x[None]) for _ in range(4000)]).squeeze(1)
            else:
                y = model(x.expand(4000, 1, 5)).squeeze(1)
        draws = []
        torch.manual_seed(2)
        for _ in range(4000):  # weights drawn one by one from the definition of the family
            A, B, level = state.lora_A, state.lora_B, state.parameters
            if family == "rank":
                A = (1 + level["log_alpha"].mul(0.5).exp() * torch.randn(3)).unsqueeze(-1) * A
            elif family == "weight_tied":
                root = level["log_alpha"].mul(0.5).exp()
                A = A + root.unsqueeze(-1) * A.abs() * torch.randn_like(A)
                B = B + root * B.abs() * torch.randn_like(B)
            elif family == "untied":
                A = A + level["log_variance_A"].mul(0.5).exp() * torch.randn_like(A)
                B = B + level["log_variance_B"].mul(0.5).exp() * torch.randn_like(B)
            else:
                sigma = level["log_variance"].mul(0.5).exp()
                A = A + sigma.unsqueeze(-1) * torch.randn_like(A)
                B = B if family == "asym" else B + sigma * torch.randn_like(B)
            draws.append(s * B @ (A @ x))
        expected = torch.stack(draws)
        base = model.base_model.model[0].base_layer(x)
    assert float((y.mean(0) - base - expected.mean(0)).norm() / expected.std(0).norm()) < 0.08
    assert float((torch.cov(y.T) - torch.cov(expected.T)).norm() / torch.cov(expected.T).norm()) < 0.15


def test_what_shares_a_draw():
    model, _, _ = one_layer()
    x = torch.randn(1, 1, 5).expand(3, 4, 5)
    with torch.no_grad():
        for noise, examples, tokens in (("call", True, True), ("sequence", False, True), ("token", False, False)):
            with sampling(model, seed=0, noise=noise):
                y = model(x)
            assert torch.allclose(y[0], y[1], atol=1e-6) == examples
            assert torch.allclose(y[:, 0], y[:, 1], atol=1e-6) == tokens


def test_training_draws_and_evaluation_is_the_mean():
    model = scatter(adapted())
    mean = logits(model)
    assert torch.equal(logits(model), mean)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    assert not torch.equal(logits(model), logits(model))
    for module in lrvd_modules(model).values():
        module.lrvd_noise["default"] = "none"
    torch.testing.assert_close(logits(model), mean)


@every_family
def test_a_seed_gives_the_same_draws_and_leaves_the_global_state(family):
    model = scatter(adapted(family))
    mean, state = logits(model), torch.get_rng_state()
    for noise in ("call", "sequence", "token"):
        found = []
        for _ in range(2):
            with sampling(model, num_samples=3, seed=5, noise=noise) as draws:
                found.append(torch.stack([logits(model) for _ in draws]))
        assert torch.equal(*found)
        assert not torch.equal(found[0][0], found[0][1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), mean)


def test_a_turn_of_the_loop_is_one_function_and_a_call_outside_it_is_a_new_one():
    model = scatter(adapted())
    with sampling(model, num_samples=2, seed=0) as draws:
        turns = [(logits(model), logits(model)) for _ in draws]
        assert all(torch.equal(a, b) for a, b in turns)
        assert not torch.equal(turns[0][0], turns[1][0])
        assert not torch.equal(logits(model), logits(model))
    assert len(draws) == 2


def test_generation_uses_one_draw():
    model = scatter(get_peft_model(tiny_gpt2(), LrvdConfig(r=3, target_modules=["c_attn", "c_fc"])).eval())
    ids = token_ids(2, 4)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    with sampling(model, num_samples=1, seed=0) as draws:
        for _ in draws:
            text = model.generate(input_ids=ids, **options)
            again = logits(model, text[:, :-1]).argmax(-1)
    assert torch.equal(again[:, 3:], text[:, 4:])  # greedy under the very draw


# -- with the machinery around it --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@every_family
def test_gradient_checkpointing_replays_the_noise(family):
    def gradients(checkpointed):
        model = scatter(adapted(family))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        model(token_ids(), labels=torch.tensor([0, 1, 1])).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert any(float(g.abs().max()) > 0 for n, g in plain.items() if "lrvd" in n)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model = scatter(adapted(noise="none"))
    ids, labels = token_ids(4), torch.tensor([0, 1, 1, 0])
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    (model(ids, labels=labels).loss + kl_divergence(model)).backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        ((model(ids[part], labels=labels[part]).loss + kl_divergence(model)) / 2).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, whole[name], msg=name)


def test_adapters_on_a_bfloat16_base_are_float32():
    model = scatter(adapted(base=tiny_bert(dtype=torch.bfloat16)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.train()
    loss = model(token_ids(), labels=torch.tensor([0, 1, 1])).loss + 1e-3 * kl_divergence(model)
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.requires_grad)
    assert logits(model.eval()).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning")
def test_a_compiled_step_draws_and_has_the_same_gradient(compiling):
    model, state, _ = one_layer()
    x = torch.randn(7, 5)

    def loss(points):
        return model(points).square().mean() + kl_divergence(model)

    results = []
    for step in (loss, torch.compile(loss, backend="aot_eager")):
        model.train()
        model.zero_grad()
        torch.manual_seed(0)
        value = step(x)
        value.backward()
        results.append((value.detach(), state.parameters["log_alpha"].grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_the_kl_is_the_sum_over_modules():
    model = scatter(adapted())
    by_hand = sum(family_kl(*m.lrvd_state("default")[:4]) for m in lrvd_modules(model).values())
    torch.testing.assert_close(kl_divergence(model), by_hand)
    weights = [m.in_features + m.out_features for m in lrvd_modules(model).values()]
    fresh = adapted()
    ratio = float((kl_divergence(fresh, "weights") / kl_divergence(fresh)).detach())
    assert abs(ratio - sum(weights) / len(weights)) < 1e-3


# -- saving and loading ------------------------------------------------------------------------------------------------


@every_family
def test_a_prior_is_saved_with_its_adapter(family, tmp_path):
    prior = "half-cauchy" if family == "rank" else "ard"
    model = scatter(adapted(family, prior=prior))
    expected = sum(family_kl(*m.lrvd_state("default")[:4], prior=prior) for m in lrvd_modules(model).values())
    torch.testing.assert_close(kl_divergence(model), expected)
    usual = sum(family_kl(*m.lrvd_state("default")[:4]) for m in lrvd_modules(model).values())
    assert abs(float((expected - usual).detach())) > 0.1
    model.save_pretrained(tmp_path)
    assert torch.equal(kl_divergence(lrvd_load(tiny_bert(), tmp_path)), kl_divergence(model))


@every_family
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    model = scatter(adapted(family, modules_to_save=["classifier"]))
    nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    loaded = lrvd_load(tiny_bert(), tmp_path)
    before = {n: p for n, p in model.named_parameters() if "lora_" in n}
    after = {n: p for n, p in loaded.named_parameters() if "lora_" in n}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert any(
        p.requires_grad
        for n, p in lrvd_load(tiny_bert(), tmp_path, is_trainable=True).named_parameters()
        if "lora_" in n
    )
    for m in (model, loaded):
        with sampling(m, seed=3, noise="sequence"):
            m.found = logits(m)
    assert torch.equal(loaded.found, model.found)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
def test_plain_peft_reads_the_posterior_mean(tmp_path):
    model = scatter(adapted())
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert not any(isinstance(m, LrvdLinear) for m in plain.modules())
    assert torch.equal(logits(plain), logits(model))


def test_plain_peft_in_a_process_without_this_library_predicts_the_posterior_mean(tmp_path):
    model = scatter(adapted())
    model.save_pretrained(tmp_path / "adapter")
    tiny_bert().save_pretrained(tmp_path / "base")
    script = f"""
import sys, warnings

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("guides", "pp_models", "inference", "evaluation", "tests", "pyro"):
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Blocked())
try:
    import guides
except ImportError:
    pass
else:
    raise SystemExit("guidebook can be imported")
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

base = BertForSequenceClassification.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    logits = model(torch.tensor({token_ids().tolist()})).logits
save_file({{"logits": logits}}, {str(tmp_path / "logits.safetensors")!r})
assert not [m for m in sys.modules if m.partition(".")[0] in ("guides", "pp_models", "inference")]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], logits(model))


def test_merging_gives_the_mean_and_disabling_the_base():
    model = scatter(adapted())
    mean = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_bert()))
        with sampling(model, seed=0):
            assert torch.equal(logits(model), logits(tiny_bert()))
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), mean, atol=1e-5, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), mean, atol=1e-5, rtol=0)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, LrvdLinear) for m in merged.modules())
    torch.testing.assert_close(logits(merged), mean, atol=1e-5, rtol=0)


def test_conv1d_layers():
    base = tiny_gpt2()
    model = get_peft_model(base, LrvdConfig(r=3, target_modules=["c_attn", "c_proj"])).eval()
    assert torch.equal(logits(model), logits(tiny_gpt2()))
    scatter(model)
    mean = logits(model)
    with sampling(model, seed=0):
        assert not torch.equal(logits(model), mean)
    torch.testing.assert_close(logits(model.merge_and_unload()), mean, atol=1e-5, rtol=0)


def test_adapters_are_independent(tmp_path):
    first, second = scatter(adapted()), scatter(adapted("asym", r=2), scale=0.5)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    both = lrvd_load(tiny_bert(), tmp_path / "first")
    lrvd_load(both, tmp_path / "second", adapter_name="other")
    assert torch.equal(logits(both), logits(first))
    assert torch.equal(kl_divergence(both), kl_divergence(first))
    both.set_adapter("other")
    assert torch.equal(logits(both), logits(second))
    assert {len(v) for v in rank_log_alpha(both).values()} == {2}
    both.add_adapter("plain", LoraConfig(r=2, target_modules=BERT_TARGETS))
    both.set_adapter("plain")
    assert torch.equal(logits(both), logits(tiny_bert()))
    assert rank_log_alpha(both) == {} and not kl_divergence(both).any()
    both.delete_adapter("other")
    both.set_adapter("default")
    assert torch.equal(logits(both), logits(first))
    assert not [n for n, _ in both.named_parameters() if n.endswith(".other")]


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
def test_weighted_sums_of_adapters_are_refused_and_those_of_their_means_are_plain_lora(tmp_path):
    first, second = scatter(adapted()), scatter(adapted(), scale=0.5)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = lrvd_load(tiny_bert(), tmp_path / "first")
    model.add_adapter("plain", LoraConfig(r=4, target_modules=BERT_TARGETS))
    for names in (["default", "plain"], ["plain", "default"], ["default"]):
        with pytest.raises(ValueError, match=r"^adapters: 'default' is an LRVD adapter, .* combine those$") as caught:
            model.add_weighted_adapter(names, [0.5] * len(names), "sum", combination_type="cat")
        assert "\n" not in str(caught.value) and set(model.peft_config) == {"default", "plain"}
    model.add_weighted_adapter(["plain"], [1.0], "copy")
    assert "copy" in model.peft_config
    plain = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    plain.load_adapter(tmp_path / "second", "second")
    plain.add_weighted_adapter(["default", "second"], [1.0, 0.0], "sum", combination_type="cat")
    plain.set_adapter("sum")
    torch.testing.assert_close(logits(plain.eval()), logits(first))


def test_a_deep_copy_is_independent():
    model = scatter(adapted())
    twin = copy.deepcopy(model)
    scatter(twin, scale=1.0)
    assert not torch.equal(logits(twin), logits(model))


# -- bad input, in one line --------------------------------------------------------------------------------------------


class Linear4bit(nn.Linear):
    """Bears the name of a quantised layer."""


def quantised():
    net = Net()
    net.first = Linear4bit(6, 8)
    return net


@pytest.mark.parametrize(
    ("options", "base", "message"),
    [
        ({"r": 0}, Net, r"^r: got 0; it must be at least 1"),
        ({"r": -2}, Net, r"^r: got -2; it must be at least 1"),
        ({"rank_pattern": {"first": 0}}, Net, r"^rank_pattern: got 0 for 'first'; it must be at least 1"),
        ({"family": ""}, Net, r"^family: got ''; it must be one of rank, shared_sigma, asym, weight_tied, untied$"),
        ({"family": "rows"}, Net, r"^family: got 'rows'; it must be one of"),
        ({"prior": "flat"}, Net, r"^prior: got 'flat'; it must be one of log-uniform, half-cauchy, ard$"),
        (
            {"prior": "half-cauchy", "family": "asym"},
            Net,
            r"^prior: got 'half-cauchy', which is of one scale and goes with multipliers around 1 \(family 'rank'\)",
        ),
        ({"noise": "word"}, Net, r"^noise: got 'word'; it must be one of call, sequence, token, none$"),
        ({"use_dora": True}, Net, r"^use_dora: got True, which LRVD does not support: its update is not a sum of"),
        ({"lora_bias": True}, Net, r"^lora_bias: got True, which LRVD does not support: a bias is no rank component"),
        ({"init_lora_weights": "pissa"}, Net, r"^init_lora_weights: got 'pissa'; with LRVD it must be True, False or"),
        ({"target_modules": ["third"]}, Net, r"^Target modules \{'third'\} not found in the base model"),
        ({"target_modules": ["wte"]}, tiny_gpt2, r"^target_modules: 'transformer.wte' is of type Embedding; LRVD ada"),
        (
            {},
            quantised,
            r"^target_modules: 'first' is of type Linear4bit, quantised, which LRVD does not support; load",
        ),
    ],
)
def test_refusals(options, base, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_peft_model(base(), LrvdConfig(**{"target_modules": ["first"], **options}))
    assert "\n" not in str(caught.value)


def saved(path, **net):
    get_peft_model(Net(**net), LrvdConfig(r=2, target_modules=["first", "second"])).save_pretrained(path)
    return path


def test_an_adapter_of_another_architecture_is_refused_and_the_base_left_alone(tmp_path):
    saved(tmp_path)
    other = Net(k_in=7)
    with pytest.raises(
        ValueError, match=r"^base: the adapter's lora_A for 'first' has shape \[2, 6\], and the layer has 7"
    ):
        lrvd_load(other, tmp_path)
    assert type(other.first) is nn.Linear
    with pytest.raises(
        ValueError, match=r"^base: the adapter has weights for 'first', and .*ForSequenceClassification"
    ):
        lrvd_load(tiny_bert(), tmp_path)


def test_folders_that_hold_no_such_adapter_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^path: .* holds no adapter_config.json; save the adapter by"):
        lrvd_load(Net(), tmp_path)
    with pytest.raises(ValueError, match=r"^path: /no/such/folder is not a folder, nor the name of a repository"):
        lrvd_load(Net(), "/no/such/folder")
    plain = tmp_path / "plain"
    get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"])).save_pretrained(plain)
    with pytest.raises(ValueError, match=r"^path: .* is of a LORA adapter without LRVD's fields; load it by peft"):
        lrvd_load(Net(), plain)
    pickled = saved(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"^path: .* holds adapter_model.bin, a pickle that is not read; save"):
        lrvd_load(Net(), pickled)
    damaged = saved(tmp_path / "damaged")
    weights = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"^path: .*adapter_model.safetensors is not readable \("):
        lrvd_load(Net(), damaged)
    broken = saved(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^path: .* is not an adapter configuration \(JSONDecodeError"):
        lrvd_load(Net(), broken)
    differing = saved(tmp_path / "differing")
    content = json.loads((differing / "adapter_config.json").read_text())
    (differing / "adapter_config.json").write_text(json.dumps(content | {"family": "untied"}))
    with pytest.raises(
        ValueError, match=r"^path: .* and its configuration differ, first in .*; the folder is damaged$"
    ):
        lrvd_load(Net(), differing)


def test_a_model_without_lrvd_layers_is_refused():
    for call in (kl_divergence, rank_log_alpha, lambda m: sampling(m).__enter__()):
        with pytest.raises(ValueError, match=r"^model: Net has no LRVD layer; adapt it with guides.LrvdConfig first$"):
            call(Net())
    model = adapted()
    with pytest.raises(ValueError, match=r"^noise: got 'none'; it must be 'call', 'sequence' or 'token'$"):
        sampling(model, noise="none").__enter__()
    with pytest.raises(ValueError, match=r"^num_samples: got 0; it must be at least 1$"):
        sampling(model, num_samples=0).__enter__()
    with pytest.raises(ValueError, match=r"^count: got 'layers'; it must be 'rank' or 'weights'$"):
        kl_divergence(model, "layers")


def test_peft_is_imported_only_when_asked_for():
    script = """
import sys
import pp_models, guides, inference, evaluation, inference.lrvd_training
assert not {"peft", "transformers"} & set(sys.modules), "imported"
sys.modules["peft"] = None
try:
    guides.LrvdConfig
except ImportError as error:
    assert "pip install guidebook[adapters]" in str(error) and "\\n" not in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "rank"])
@pytest.mark.parametrize("noise", ["call", "sequence"])
def test_a_random_factor_is_one_product_with_the_drawn_weights(family, noise):
    _, state, _ = one_layer(family)
    x = torch.randn(6, 2, 5)
    torch.manual_seed(4)
    found = noisy_output(state.family, x, state.lora_A, state.lora_B, state.parameters, noise)
    torch.manual_seed(4)
    each = (6,) if noise == "sequence" else ()
    scales = factor_scales(*state[:4])
    expected = x
    for weight, scale in zip((state.lora_A, state.lora_B), scales, strict=True):
        drawn = weight if scale is None else weight + scale * torch.randn(*each, *weight.shape)
        expected = torch.einsum("ntk,nok->nto", expected, drawn.expand(6, *weight.shape))
    torch.testing.assert_close(found, expected)
