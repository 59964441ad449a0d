"""Pruned ranks leave the function where masking leaves it, and the optimizer where it was."""

import copy

import pyro
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from guides import MCDropoutAdapterGuide, RankwiseGuide
from guides.adapters.lrvd_families import FAMILIES, LOG_ALPHA_RANGE
from guides.adapters.lrvd_layers import kl_divergence, lrvd_modules, rank_log_alpha, sampling
from guides.adapters.lrvd_peft import LrvdConfig
from guides.adapters.lrvd_saving import lrvd_load, read_config
from inference import fit, predict, prune_ranks
from inference.adapters.rank_pruning import largest_gap, module_ranks, rank_threshold
from pp_models import Dataset, LowRankAdapted
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, token_ids

LABELS = torch.tensor([0, 1, 1])


def adapted(family="rank", **options):
    options = {"target_modules": BERT_TARGETS, "lora_alpha": 7} | options
    return get_peft_model(tiny_bert(), LrvdConfig(r=4, family=family, **options)).eval()


def trained(family="rank", steps=3, **options):
    """A few Adam steps, then noise levels of which some ranks, and all of the first two modules, drown."""
    model = adapted(family, **options)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        step(model, optimizer)
    modules = list(lrvd_modules(model).values())
    with torch.no_grad():
        for i, module in enumerate(modules):
            own = torch.randn(*module.ranks().values()) * 2 + 9 * (i < 2)
            for name, p in module.lrvd_state("default").parameters.items():
                p.copy_((own.unsqueeze(-1) if name == "log_variance_A" else own) - 3 * ("variance" in name))
    return model.eval(), optimizer


def step(model, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = model(token_ids(), labels=LABELS).loss + 1e-3 * kl_divergence(model)
    loss.backward()
    optimizer.step()
    model.eval()
    return float(loss.detach())


def logits(model):
    with torch.no_grad():
        return model(token_ids()).logits


def masked(model, threshold):
    """A copy in which pruned ranks are multiplied by zero."""
    twin = copy.deepcopy(model)
    log_alpha = rank_log_alpha(twin)
    with torch.no_grad():
        for path, module in lrvd_modules(twin).items():
            module.lora_B["default"].weight[:, log_alpha[path] >= threshold] = 0.0
    return twin


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_and_masked_are_one_function(family):
    model, optimizer = trained(family)
    expected = logits(masked(model, 1.0))
    before = rank_log_alpha(model)
    scales = {path: m.update_scale() for path, m in lrvd_modules(model).items()}
    done = prune_ranks(model, optimizer, 1.0)
    assert float((logits(model) - expected).abs().max()) < 1e-6
    assert done.kept == {path: int((v < 1.0).sum()) for path, v in before.items()}
    assert 0 in done.kept.values() and any(0 < r < 4 for r in done.kept.values())
    assert done.removed == 4 * len(before) - done.total_rank
    after = rank_log_alpha(model)
    assert all(torch.equal(after[path], v[v < 1.0]) for path, v in before.items() if (v < 1.0).any())
    assert {path: m.update_scale() for path, m in lrvd_modules(model).items() if m.factors()} == {
        path: scales[path] for path in after
    }
    assert {path: r for path, r in module_ranks(model).items() if r} == {p: r for p, r in done.kept.items() if r}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trainable
    step(model, optimizer)


def test_moments_are_cut_like_their_parameters():
    model, optimizer = trained()
    keep = {path: v < 1.0 for path, v in rank_log_alpha(model).items()}
    modules = lrvd_modules(model)

    def moments(module):
        cuts = module.rank_parameters()
        return [(optimizer.state[getattr(c.owner, c.name)], c.dim) for c in cuts]

    before = {path: [(dict(s), dim) for s, dim in moments(m)] for path, m in modules.items()}
    prune_ranks(model, optimizer)
    compared = 0
    for path, module in modules.items():
        if module.factors() is None:
            continue
        for (new, dim), (old, _) in zip(moments(module), before[path], strict=True):
            index = keep[path].nonzero().squeeze(-1)
            for key in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(new[key], old[key].index_select(dim, index))
                compared += 1
            assert float(new["step"]) == 3.0
    assert compared > 0
    assert len(optimizer.state) == sum(p.requires_grad for p in model.parameters())


def test_the_loss_goes_on_where_it_was_when_null_ranks_go():
    model, optimizer = trained(steps=20)
    with torch.no_grad():  # ranks at log alpha > 3 whose signal training has taken away
        for module in lrvd_modules(model).values():
            state = module.lrvd_state("default")
            state.parameters["log_alpha"].copy_(torch.tensor([-4.0, -4.0, 3.5, 4.0]))
            state.lora_B[:, 2:] *= 1e-3
    twin, twin_optimizer = copy.deepcopy(model), None
    twin_optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=1e-3)
    twin_optimizer.load_state_dict(optimizer.state_dict())
    prune_ranks(model, optimizer, 3.0)
    assert set(module_ranks(model).values()) == {2}

    def losses(m, o):
        found = []
        for k in range(10):
            torch.manual_seed(k)
            m.train()
            for module in m.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            for module in lrvd_modules(m).values():
                module.lrvd_noise["default"] = "none"
            o.zero_grad()
            loss = m(token_ids(), labels=LABELS).loss
            loss.backward()
            o.step()
            found.append(float(loss.detach()))
        return torch.tensor(found)

    kept, pruned = losses(twin, twin_optimizer), losses(model, optimizer)
    assert float(((pruned - kept) / kept).abs().max()) < 0.01


def test_rank_zero_everywhere_is_the_base_model():
    model, optimizer = trained()
    done = prune_ranks(model, optimizer, -100.0, allow_empty=True)
    assert done.total_rank == 0
    assert torch.equal(logits(model), logits(tiny_bert()))
    with sampling(model, seed=0):
        assert torch.equal(logits(model), logits(tiny_bert()))
    assert not kl_divergence(model).any()


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_a_pruned_adapter_is_saved_pruned_and_plain_peft_reads_it(tmp_path, rslora):
    model, optimizer = trained(use_rslora=rslora, exclude_modules=["layer.1.intermediate.dense"])
    prune_ranks(model, optimizer)
    step(model, optimizer)
    prune_ranks(model, optimizer, 0.5)  # the patterns of two prunings are in the configuration
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = lrvd_load(tiny_bert(), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)
    assert {p: r for p, r in module_ranks(model).items() if r} == module_ranks(loaded)
    assert all(torch.equal(v, rank_log_alpha(model)[p]) for p, v in rank_log_alpha(loaded).items())
    plain = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-6, rtol=0)


def test_a_name_that_ends_like_another_keeps_its_own_rank(tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.ModuleDict({"0": nn.Linear(4, 4), "net": nn.ModuleDict({"0": nn.Linear(4, 4)})})

    model = get_peft_model(base(), LrvdConfig(r=4, target_modules=["0"]))
    modules = lrvd_modules(model)
    with torch.no_grad():
        modules["0"].lora_lrvd_log_alpha["default"][1:] = 5.0
        modules["net.0"].lora_lrvd_log_alpha["default"][3:] = 5.0
    assert prune_ranks(model).kept == {"0": 1, "net.0": 3}
    model.save_pretrained(tmp_path)
    assert module_ranks(lrvd_load(base(), tmp_path)) == {"0": 1, "net.0": 3}


def test_thresholds_budgets_and_gaps():
    log_alpha = {"a": torch.tensor([-5.0, 2.0]), "b": torch.tensor([-4.0, 3.0, 0.5])}
    assert rank_threshold(log_alpha) == 1.0
    assert rank_threshold(log_alpha, "gap") == -1.75
    assert rank_threshold(log_alpha, budget=3) == 2.0
    assert rank_threshold(log_alpha, budget=9) == float("inf")
    assert largest_gap(torch.tensor([1.0])) == float("inf")
    model, optimizer = trained()
    counts = []
    for threshold in (4.0, 2.0, 1.0, 0.0, -1.0):  # a curve of ranks over thresholds falls
        counts.append(prune_ranks(copy.deepcopy(model), None, threshold).total_rank)
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 5
    assert prune_ranks(model, optimizer, budget=7).total_rank == 7


def test_a_budget_with_ties_is_met_exactly():
    model = adapted()  # every rank starts at the same log alpha
    assert prune_ranks(model, budget=10).total_rank == 10


def test_nothing_is_pruned_before_its_time():
    model, optimizer = trained(steps=3)
    before = logits(model)
    assert prune_ranks(model, optimizer, min_steps=4).removed == 0
    assert torch.equal(logits(model), before)
    step(model, optimizer)
    assert prune_ranks(model, optimizer, min_steps=4).removed > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"threshold": -50.0},
            r"^threshold: got -50.0; it would prune all 24 ranks \(the lowest log alpha is .*\); train",
        ),
        ({"budget": 0}, r"^budget: got 0; it would prune all 24 ranks"),
        ({"budget": -1}, r"^budget: got -1; it must be at least 0, or None$"),
        ({"threshold": "half"}, r"^threshold: got 'half'; it must be 'gap' or a number that is finite$"),
        ({"threshold": float("nan")}, r"^threshold: got nan; it must be 'gap', or be finite$"),
        ({"optimizer": 3}, r"^optimizer: got int; it must be a torch or Pyro optimizer, or a list$"),
        ({"min_steps": 5}, r"^min_steps: got 5, which needs the optimizer that counts the steps$"),
    ],
)
def test_refusals(options, message):
    model, _ = trained()
    before = logits(model)
    with pytest.raises(ValueError, match=message) as caught:
        prune_ranks(model, **options)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), before)


def test_an_optimizer_whose_state_cannot_be_cut_is_refused():
    model, _ = trained()
    optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad])
    step(model, optimizer)
    with pytest.raises(
        ValueError, match=r"^optimizer: its state 'row_var' has shape .* only moments of the parameter's"
    ):
        prune_ranks(model, optimizer)


# -- in Pyro -----------------------------------------------------------------------------------------------------------


def pair(family="rank"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    model = LowRankAdapted(net, ["0", "2"], rank=4)
    guide = RankwiseGuide(model, family)
    data = Dataset(torch.randn(20, 5), torch.randint(0, 3, (20,)))
    return model, guide, data


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pyro_pair_is_pruned_and_trained_further(family):
    model, guide, data = pair(family)
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(3):
        svi.step(data)
    values = torch.cat(list(guide.rank_log_alpha().values()))
    threshold = float(values.sort().values[3:5].mean())
    done = prune_ranks(model, optimizer, threshold, guide=guide)
    assert done.total_rank == 4
    svi.step(data)
    assert {p: len(v) for p, v in guide.rank_log_alpha().items()} == {p: r for p, r in done.kept.items() if r}
    fit(model, guide, data, steps=2, progress=False)
    prediction = predict(model, guide, data, data.x, num_samples=5, seed=0)
    assert prediction.mean.shape == (20, 3)
    prune_ranks(model, guide=guide, threshold=min(LOG_ALPHA_RANGE) - 99, allow_empty=True)
    with torch.no_grad():
        outputs = model.outputs(data.x)
        layers = [model.backbone[0].base_layer, nn.Tanh(), model.backbone[2].base_layer]
        assert torch.equal(outputs, nn.Sequential(*layers)(data.x))
    assert predict(model, guide, data, data.x, num_samples=5).samples.shape == (5, 20)


def test_a_guide_without_ratios_cannot_prune():
    model, _, _ = pair()
    with pytest.raises(ValueError, match=r"^guide: MCDropoutAdapterGuide has no noise-to-signal ratio for each rank"):
        prune_ranks(model, guide=MCDropoutAdapterGuide(model))


# -- several adapters, and all or nothing ------------------------------------------------------------------------------


def two_adapters():
    """Adapter "one" uses all of its four ranks, "two" two of its own."""
    model = get_peft_model(tiny_bert(), LrvdConfig(r=4, target_modules=["query"]), adapter_name="one")
    model.add_adapter("two", LrvdConfig(r=4, target_modules=["query"]))
    model.base_model.set_adapter(["one", "two"])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.normal_(std=0.3)
            elif "log_alpha" in name:
                p.copy_(torch.tensor([-5.0] * 4 if name.endswith(".one") else [-5.0, 5.0, -5.0, 5.0]))
    return model.eval()


def test_each_of_two_active_adapters_is_cut_by_its_own_noise_levels():
    model = two_adapters()
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}
    done = prune_ranks(model)
    paths = [path for path in done.kept if ":" not in path]
    assert len(paths) == 2
    assert done.kept == {p: 4 for p in paths} | {f"{p}:two": 2 for p in paths} == module_ranks(model)
    for name, p in model.named_parameters():
        if "lora_A.one" in name:
            assert torch.equal(p, kept[name])
        elif "lora_A.two" in name:
            assert torch.equal(p, kept[name][[0, 2]])
    assert model.peft_config["one"].rank_pattern == {} and set(model.peft_config["two"].rank_pattern.values()) == {2}


def test_one_adapter_by_name_and_the_wrong_name():
    model = two_adapters()
    assert prune_ranks(model, threshold=-9.0, adapter="two", allow_empty=True).removed == 8
    assert set(module_ranks(model).values()) == {4, 0} and set(rank_log_alpha(model)) == set(
        path for path, rank in module_ranks(model).items() if rank == 4
    )
    with pytest.raises(ValueError, match=r"^adapter: got 'c'; active are one, two$"):
        prune_ranks(model, adapter="c")


def test_a_plain_lora_adapter_beside_is_left_alone():
    model = get_peft_model(tiny_bert(), LoraConfig(r=4, target_modules=["query"]), adapter_name="plain")
    with pytest.raises(ValueError, match=r"^model: PeftModel has no LRVD layer"):
        prune_ranks(model)
    model = two_adapters()
    model.add_adapter("plain", LoraConfig(r=4, target_modules=["query"]))
    model.base_model.set_adapter(["plain", "two"])
    prune_ranks(model)
    sizes = {name.split("lora_A.")[1][:3]: len(p) for name, p in model.named_parameters() if "lora_A" in name}
    assert sizes == {"one": 4, "two": 2, "pla": 4}


def test_two_active_adapters_are_no_backbone():
    with pytest.raises(
        ValueError, match=r"^backbone: adapters 'one', 'two' are active together; leave one by set_adapter$"
    ):
        LowRankAdapted(two_adapters())


def broken_cases():
    def adafactor():
        model, _ = trained()
        optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad])
        step(model, optimizer)
        return model, optimizer

    def lbfgs():
        model, _ = trained()
        return model, torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])

    def second_of_two():
        model, good = trained()
        bad = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        last = [p for n, p in model.named_parameters() if "lora_lrvd" in n][-1]
        bad.state[last]["history"] = [last.detach().clone()]
        return model, [good, bad]

    def merged():
        model, optimizer = trained()
        model.merge_adapter()
        return model, optimizer

    def without_configuration():
        model = tiny_bert().eval()
        model.add_adapter(LrvdConfig(r=4, target_modules=["query"]))
        next(iter(lrvd_modules(model).values())).lora_lrvd_log_alpha["default"].data[1:] = 5.0
        del model.peft_config["default"]
        return model, None

    return [
        (adafactor, r"^optimizer: its state 'row_var' has shape .* only moments of the parameter's"),
        (lbfgs, r"^optimizer: LBFGS keeps one state for all parameters, which cannot be cut; use Adam or SGD$"),
        (second_of_two, r"^optimizer: its state 'history' has type list for a parameter of shape \[4\]; only moments"),
        (merged, r"^model: adapter 'default' is merged into '.*'; call unmerge_adapter\(\) first$"),
        (without_configuration, r"^model: .* has layers of adapter 'default' but no configuration of it$"),
    ]


@pytest.mark.parametrize(("build", "message"), broken_cases())
def test_what_is_refused_leaves_everything_whole(build, message):
    model, optimizer = build()
    before, shapes = logits(model), {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message) as caught:
        prune_ranks(model, optimizer)
    assert "\n" not in str(caught.value)
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert torch.equal(logits(model), before)


def test_a_pair_needs_its_guide():
    with pytest.raises(ValueError, match=r"^guide: got None; the noise levels of a LowRankAdapted are its guide's"):
        prune_ranks(pair()[0])


def test_pyro_schedulers_are_cut_too():
    model, guide, data = pair()
    optimizer = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    svi.step(data)
    assert prune_ranks(model, optimizer, budget=3, guide=guide).total_rank == 3
    svi.step(data)


# -- the configuration -------------------------------------------------------------------------------------------------

FIRST = "encoder.layer.0.attention.self.query"
PATTERNS = [
    {"rank_pattern": {r".*\.query": 6}},
    {"rank_pattern": {f"^bert.{FIRST}": 6}},
    {"rank_pattern": {"query": 6, r".*\.0\..*\.query": 3}},
    {"rank_pattern": {r"layer\.0\..*\.query": 3, "query": 6}, "alpha_pattern": {r"z?layer\.0\..*": 5, r".*": 9}},
    {"alpha_pattern": {r".*\.query": 3}, "use_rslora": True},
]


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("patterns", PATTERNS)
def test_patterns_of_the_users_own_survive_saving_and_opening(patterns, pruned, tmp_path):
    model, optimizer = trained(target_modules=["query", "value"], **patterns)
    if pruned:
        prune_ranks(model, optimizer, budget=7)
        prune_ranks(model, optimizer, budget=4)
    expected = logits(model)
    scales = {path: m.update_scale() for path, m in lrvd_modules(model).items() if m.factors()}
    model.save_pretrained(tmp_path)
    for load in (lrvd_load, PeftModel.from_pretrained):
        loaded = load(tiny_bert(), tmp_path).eval()
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)
    opened = lrvd_load(tiny_bert(), tmp_path)
    assert {path: m.update_scale() for path, m in lrvd_modules(opened).items()} == pytest.approx(scales)


def test_what_transformers_added_is_pruned_saved_and_opened(tmp_path):
    model = tiny_bert()
    model.add_adapter(LrvdConfig(r=4, target_modules=["query", "value"]), adapter_name="mine")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.normal_(std=0.3)
            elif "log_alpha" in name:
                p.copy_(torch.tensor([-5.0, 5.0, -5.0, 5.0]) + 9 * ("layer.0" in name and "query" in name))
    done = prune_ranks(model)
    assert sorted(done.kept.values()) == [0, 2, 2, 2]
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    opened = tiny_bert()
    opened.load_adapter(str(tmp_path), peft_config=read_config(tmp_path))
    torch.testing.assert_close(logits(opened.eval()), expected, atol=1e-6, rtol=0)


def test_a_saved_adapter_without_a_rank_says_so(tmp_path):
    model, optimizer = trained()
    prune_ranks(model, optimizer, -100.0, allow_empty=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^path: .* holds no rank: pruned to rank 0 everywhere, it is the base model$"
    ):
        lrvd_load(tiny_bert(), tmp_path)
