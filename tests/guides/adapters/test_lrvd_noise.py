"""What an LRVD layer computes: its noise, its KL, and both under checkpointing, accumulation and compilation."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from guides.adapters.lrvd_families import FAMILIES, _noisy_linear, factor_scales, family_kl, noisy_output
from guides.adapters.lrvd_layers import kl_divergence, lrvd_modules, sampling
from guides.adapters.lrvd_peft import LrvdConfig
from tests.guides.adapters.adapted_networks import adapted, every_family, logits, one_layer, scatter
from tests.tiny_transformers import tiny_bert, tiny_gpt2, token_ids


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_token_without_signal_has_a_gradient_in_every_precision(dtype):
    """Where the variance is 0 the root's slope is that of its floor, which 16 bits do not hold."""
    x = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
    weight, scale = (torch.full((4, 5), v, dtype=dtype, requires_grad=True) for v in (0.5, 0.1))
    found = _noisy_linear(x, weight, scale, "token", None)
    found.sum().backward()
    assert found.dtype == dtype and float(found.detach().abs().max()) < 2e-3
    assert all(bool(torch.isfinite(t.grad).all()) for t in (x, weight, scale))
    torch.testing.assert_close(x.grad.float(), torch.full((3, 5), 2.0), rtol=1e-2, atol=1e-2)
