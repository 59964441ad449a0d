"""What people do with a peft adapter, on every kind of network, as one table: each cell does it with LRVD."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import guidebook as gb
from guides.adapters.lrvd_layers import kl_divergence, lrvd_modules, rank_log_alpha, sampling
from guides.adapters.lrvd_peft import LrvdConfig
from tests.guides.adapters.adapted_networks import Net, scatter
from tests.tiny_transformers import BERT_TARGETS, VOCABULARY, tiny_bert, tiny_gpt2, token_ids


def decoder(kind, configuration):
    """A causal language model of 2 layers, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        return kind(configuration(**sizes, **tokens, max_position_embeddings=16)).eval()


def two_layers():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net().eval()


#: by name: the network, and the layers that are adapted; Phi-3's projections are fused, GPT-2's are Conv1D
NETWORKS = {
    "mlp": (two_layers, ["first", "second"]),
    "bert": (tiny_bert, BERT_TARGETS),
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"]),
    "llama": (lambda: decoder(LlamaForCausalLM, LlamaConfig), ["q_proj", "v_proj", "down_proj"]),
    "phi3": (lambda: decoder(Phi3ForCausalLM, Phi3Config), ["qkv_proj", "gate_up_proj"]),
}


class Case:
    """A network of the table, and its adapter."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.base, self.targets = NETWORKS[name]
        self.is_transformer = name != "mlp"

    def config(self, r=3, **options):
        return LrvdConfig(r=r, target_modules=list(self.targets), lora_alpha=7, **options)

    def model(self, **options):
        return get_peft_model(self.base(), self.config(**options)).eval()

    def trained(self, **options):
        return scatter(self.model(**options))

    def outputs(self, model):
        if self.is_transformer:
            return model(token_ids()).logits
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        return model(x.to(next(model.parameters()).dtype))

    def means(self, model):
        with torch.no_grad():
            return self.outputs(model)

    def loss(self, model):
        return self.outputs(model).square().mean() + kl_divergence(model) / 100


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def fresh_it_changes_nothing(case):
    assert torch.equal(case.means(case.model()), case.means(case.base()))


def saved_and_opened_by_peft_it_is_the_posterior(case):
    model = case.trained()
    model.save_pretrained(case.folder)
    again = PeftModel.from_pretrained(case.base(), case.folder).eval()
    assert torch.equal(case.means(again), case.means(model)) and torch.equal(kl_divergence(again), kl_divergence(model))
    found, expected = rank_log_alpha(again), rank_log_alpha(model)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def opened_as_trainable_it_learns_on(case):
    case.trained().save_pretrained(case.folder)
    model = PeftModel.from_pretrained(case.base(), case.folder, is_trainable=True).train()
    case.loss(model).backward()
    used = {n.split(".")[-2] for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert used == {"lora_A", "lora_B", "lora_lrvd_log_alpha"} or {"lora_lrvd_log_alpha"} < used


def a_state_dict_comes_back(case):
    model, other = case.trained(), case.model()
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert torch.equal(case.means(other), case.means(model)) and torch.equal(kl_divergence(other), kl_divergence(model))


def merged_it_is_the_mean_and_unmerged_itself(case):
    model = case.trained()
    mean = case.means(model)
    model.merge_adapter(safe_merge=True)
    close(case.means(model), mean)
    model.unmerge_adapter()
    close(case.means(model), mean)
    with sampling(model, seed=0):
        assert not torch.equal(case.means(model), mean)


def merged_and_unloaded_it_is_a_plain_network(case):
    model = case.trained()
    mean = case.means(model)
    plain = model.merge_and_unload()
    close(case.means(plain), mean)
    with pytest.raises(ValueError, match="has no LRVD layer"):
        kl_divergence(plain)


def unloaded_it_is_the_base(case):
    assert torch.equal(case.means(case.trained().unload()), case.means(case.base()))


def disabled_it_is_the_base(case):
    model = case.trained()
    with model.disable_adapter(), sampling(model, seed=0):
        assert torch.equal(case.means(model), case.means(case.base()))


def two_adapters_are_switched(case):
    model = case.trained()
    first = case.means(model)
    model.add_adapter("other", case.config(r=2))
    model.set_adapter("other")
    assert torch.equal(case.means(model.eval()), case.means(case.base()))
    assert {len(v) for v in rank_log_alpha(model).values()} == {2}
    model.set_adapter("default")
    assert torch.equal(case.means(model), first)


def a_plain_lora_stands_beside(case):
    model = case.trained()
    model.add_adapter("plain", LoraConfig(r=2, target_modules=list(case.targets)))
    model.set_adapter("plain")
    assert rank_log_alpha(model) == {} and not kl_divergence(model).any()
    assert torch.equal(case.means(model.eval()), case.means(case.base()))


def one_of_two_is_deleted(case):
    model = case.trained()
    first = case.means(model)
    model.add_adapter("other", case.config(r=2))
    model.delete_adapter("other")
    assert torch.equal(case.means(model.eval()), first) and set(model.peft_config) == {"default"}


def a_step_trains_the_adapter_alone(case):
    model = case.trained().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    case.loss(model).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in n for n in moved) and any("log_alpha" in n for n in moved)


def checkpointed_gradients_are_the_same(case):
    found = []
    for checkpointed in (False, True):
        model = case.trained(noise="sequence").train()
        if checkpointed:
            model.enable_input_require_grads()
            model.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        case.loss(model).backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*found, strict=True):
        close(again, plain, 1e-6)


def in_half_precision_it_predicts_and_learns(case, dtype):
    model = get_peft_model(case.base().to(dtype), case.config())
    scatter(model)
    mean = case.means(case.trained())
    error = (case.means(model.eval()).float() - mean).abs().max() / mean.abs().max()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)
    case.loss(model.train()).backward()
    for name, p in model.named_parameters():
        if "log_alpha" in name:
            assert p.dtype == torch.float32 and bool(torch.isfinite(p.grad).all())


def in_bfloat16(case):
    in_half_precision_it_predicts_and_learns(case, torch.bfloat16)


def in_float16(case):
    in_half_precision_it_predicts_and_learns(case, torch.float16)


def in_float64_it_is_the_same(case):
    model = case.trained()
    mean = case.means(model)
    close(case.means(model.double()).float(), mean)


def pruned_saved_and_opened_it_is_the_same(case):
    model = case.trained()
    gb.prune_ranks(model, threshold="gap")
    model.save_pretrained(case.folder)
    again = PeftModel.from_pretrained(case.base(), case.folder).eval()
    close(case.means(again), case.means(model), 1e-6)
    assert {n: len(v) for n, v in rank_log_alpha(again).items()} == {
        n: len(v) for n, v in rank_log_alpha(model).items()
    }
    assert torch.equal(kl_divergence(again), kl_divergence(model))


def a_deep_copy_is_independent(case):
    model = case.trained()
    mean = case.means(model)
    scatter(copy.deepcopy(model), scale=1.0)
    assert torch.equal(case.means(model), mean)


def draws_come_again_with_their_seed(case):
    model = case.trained()
    found = []
    for seed in (0, 0, 1):
        with sampling(model, num_samples=2, seed=seed) as draws:
            found.append(torch.stack([case.means(model) for _ in draws]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])


def the_head_is_saved_with_it(case):
    head = {"mlp": "second", "bert": "classifier"}.get(case.name, "lm_head")
    case.targets = [t for t in case.targets if t != head]
    model = case.trained(modules_to_save=[head])
    saved = next(m for n, m in model.named_modules() if n.endswith(f"{head}.modules_to_save.default"))
    nn.init.normal_(saved.weight)
    model.save_pretrained(case.folder)
    again = PeftModel.from_pretrained(case.base(), case.folder).eval()
    assert torch.equal(case.means(again), case.means(model))


def transformers_adds_it_by_itself(case):
    model = case.base()
    model.add_adapter(case.config(), adapter_name="default")
    scatter(model)
    close(case.means(model.eval()), case.means(case.trained()), 1e-6)
    assert kl_divergence(model) > 0
    model.disable_adapters()
    assert torch.equal(case.means(model), case.means(case.base()))


def generation_takes_one_draw_a_sequence(case):
    model = case.trained()
    ids = token_ids(2, 4)
    made = []
    for seed in (0, 0, 1, 2, 3):
        with sampling(model, seed=seed):
            made.append(model.generate(input_ids=ids, max_new_tokens=6, do_sample=False))
    assert torch.equal(made[0], made[1]) and any(not torch.equal(made[0], other) for other in made[2:])


def the_common_interface_takes_it(case):
    model = case.trained()
    assert gb.adapters.adapter_kinds(model) == {"lrvd": len(lrvd_modules(model))}
    torch.testing.assert_close(gb.adapters.kl(model), kl_divergence(model))
    assert len(gb.adapters.rank_summary(model)) == len(lrvd_modules(model))


SCENARIOS = (
    fresh_it_changes_nothing,
    saved_and_opened_by_peft_it_is_the_posterior,
    opened_as_trainable_it_learns_on,
    a_state_dict_comes_back,
    merged_it_is_the_mean_and_unmerged_itself,
    merged_and_unloaded_it_is_a_plain_network,
    unloaded_it_is_the_base,
    disabled_it_is_the_base,
    two_adapters_are_switched,
    a_plain_lora_stands_beside,
    one_of_two_is_deleted,
    a_step_trains_the_adapter_alone,
    checkpointed_gradients_are_the_same,
    in_bfloat16,
    in_float16,
    in_float64_it_is_the_same,
    pruned_saved_and_opened_it_is_the_same,
    a_deep_copy_is_independent,
    draws_come_again_with_their_seed,
    the_head_is_saved_with_it,
    transformers_adds_it_by_itself,
    generation_takes_one_draw_a_sequence,
    the_common_interface_takes_it,
)


#: what a network has to be for a scenario; any where nothing is said
DECODERS = ("gpt2", "llama", "phi3")
NEEDS = {
    checkpointed_gradients_are_the_same: ("bert", *DECODERS),
    transformers_adds_it_by_itself: ("bert", *DECODERS),
    generation_takes_one_draw_a_sequence: DECODERS,
}
CELLS = [(n, s) for s in SCENARIOS for n in NEEDS.get(s, NETWORKS)]


@pytest.mark.parametrize(("network", "scenario"), CELLS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.filterwarnings("ignore:LRVD layers train without:UserWarning", "ignore:Model has `tie_word:UserWarning")
def test_peft_scenarios(network, scenario, tmp_path):
    scenario(Case(network, tmp_path))


class Pictures(nn.Module):
    """Layers that plain LoRA takes too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(5, 4), nn.Conv2d(1, 4, 3)
        self.attention, self.line = nn.MultiheadAttention(4, 2, batch_first=True), nn.Conv1d(4, 4, 1)


@pytest.mark.parametrize("target", ["embedding", "conv", "attention", "line"])
def test_a_layer_that_has_no_rank_components_of_ours_is_refused_by_name(target):
    with pytest.raises(ValueError, match=rf"^target_modules: '{target}' is of type \w+; LRVD ada") as caught:
        get_peft_model(Pictures(), LrvdConfig(r=2, target_modules=[target]))
    assert "\n" not in str(caught.value)
