"""Each way to train an adapter on a tiny transformer, and what is done to a trained LoRA afterwards."""

import sys
from itertools import islice

import pyro
import pytest
import torch

import guidebook as gb
from evaluation.adapters.adapter_method import AdapterBudget
from evaluation.adapters.adapter_methods import ADAPTER_METHODS
from evaluation.adapters.adapter_post_hoc import AdapterLaplace, LogitPosterior, truncate_ranks
from evaluation.adapters.adapter_reader import NextTokens, packed
from evaluation.adapters.adapter_training import (
    TextBatches,
    build_reader,
    load_trained_state,
    predict_classes,
    train_adapter,
    trained_state,
)
from guides.adapters.blob_layers import lora_layers
from guides.adapters.lrvd_layers import kl_divergence
from pp_models.adapters.text_networks import tiny_network, token_blocks, tokenise
from pp_models.data import DataError
from pp_models.tasks.text_tasks import template_sentences

TRAIN, TEST = template_sentences(24, 0), template_sentences(10, 1)
BUDGET = AdapterBudget(steps=6, batch_size=8, rank=4, learning_rate=5e-3, draws=3)


def sets(architecture="minilm"):
    base = tiny_network(architecture, (*TRAIN.texts, *TEST.texts))
    return base, tokenise(base, TRAIN), tokenise(base, TEST)


def trained(name, seed=0, architecture="minilm"):
    base, train, test = sets(architecture)
    return train_adapter(name, base, train, 2, BUDGET, seed), train, test


@pytest.mark.parametrize("name", ADAPTER_METHODS)
def test_a_method_trains_its_adapter_alone_and_the_same_for_a_seed(name):
    state = torch.get_rng_state()
    base, train, test = sets()
    frozen = {n: p.clone() for n, p in base.network.named_parameters()}
    found = train_adapter(name, base, train, 2, BUDGET, 0)
    assert torch.equal(torch.get_rng_state(), state)
    after = {n.replace(".base_layer", ""): p for n, p in found.reader.network.named_parameters()}
    assert all(torch.equal(after[f"base_model.model.{n}"], p) for n, p in frozen.items())
    assert found.history[-1]["step"] == BUDGET.steps and found.step_ms > 0
    point = predict_classes(found.reader, test)
    torch.testing.assert_close(point, predict_classes(found.reader, test))
    again = trained(name)[0]
    torch.testing.assert_close(predict_classes(again.reader, test), point)
    drawn = predict_classes(found.reader, test, found.method, 0, 3)
    assert drawn.shape == (3, 10, 2)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(3, 10))
    torch.testing.assert_close(drawn, predict_classes(found.reader, test, found.method, 0, 3))
    assert (float((drawn[0] - drawn[1]).abs().max()) > 0) == found.method.stochastic
    torch.testing.assert_close(predict_classes(found.reader, test), point)  # draws leave nothing behind
    assert len(found.method.ranks()) == 12
    assert name == "pvera" or set(found.method.ranks()) == {p for p in lora_layers(found.reader)}


# peft's own AdaLoRA reads the host, and its MonteCLoRA keeps a buffer of noise where it was made
@pytest.mark.parametrize("name", [name for name in ADAPTER_METHODS if name not in ("adalora", "monteclora")])
def test_a_step_reads_nothing_off_the_device_and_makes_nothing_elsewhere(name):
    """Meta tensors have no values: whoever asks for one, or adds a tensor of the CPU, fails."""
    base, train, _ = sets("deberta")
    reader, method = build_reader(name, base, 2, len(train), BUDGET, 0)
    model, guide, objective, _ = method.programs(reader, tuple(train.inputs), len(train))
    for module in (model, guide):
        module.train().to("meta")
    batch = next(iter(TextBatches(train, 8, 0, "meta")))
    with pyro.validation_enabled(False):
        for _ in range(2):
            loss = objective.differentiable_loss(model, guide, batch)
            loss.backward()
            assert loss.device.type == "meta"


def mean_nll(logits, labels):
    """Cross-entropy of classes ``[n, C]``, or of next tokens ``[n, L, V]``."""
    if logits.dim() == 3:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)


@pytest.mark.parametrize("name", ["lora", "blob", "sparse-subspace", "monteclora", "pvera", "adalora", "sora"])
def test_the_loss_of_a_peft_method_is_the_nll_of_its_texts_and_its_penalty(name):
    base, train, _ = sets()
    reader, method = build_reader(name, base, 2, len(train), BUDGET, 0)
    reader.eval()  # no noise
    model, guide, objective, texts = method.programs(reader, tuple(train.inputs), len(train))
    batch = train.take(torch.arange(8))
    expected = mean_nll(reader(batch.inputs), batch.labels) + method.penalty()
    found = objective.differentiable_loss(model, guide, packed(batch)) / texts
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert bool(torch.as_tensor(method.penalty()) > 0) == (name in ("blob", "sparse-subspace", "adalora"))


@pytest.mark.parametrize(("name", "kappa"), [("lrvd-kappa-3", 3.0), ("lrvd-shared-sigma", 1.0)])
def test_a_step_of_lrvd_is_that_of_peft_layers_by_hand_in_expectation(name, kappa):
    """Noise drawn inside of the layers and their KL, against a guide and tempered-elbo: loss and gradients."""
    base, train, _ = sets()
    reader, method = build_reader(name, base, 2, len(train), BUDGET, 0)
    for parameter_name, parameter in reader.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "lora_lrvd" in parameter_name:
            shift = -6.0 if "variance" in parameter_name else 0.0
            torch.nn.init.uniform_(parameter, shift - 2.0, shift + 0.5)
    batch, weights = train.take(torch.arange(8)), [p for n, p in reader.named_parameters() if "lora_A" in n]

    def by_hand():
        reader.train()
        kl = kl_divergence(reader.network, "rank")
        return mean_nll(reader(batch.inputs), batch.labels) + kappa * kl / len(train)

    def means(loss):
        rows = []
        for _ in range(150):
            value = loss()
            found = torch.autograd.grad(value, weights)
            parts = [g.square().sum().sqrt()[None] for g in found[:4]] + [g.flatten()[:5] for g in found]
            rows.append(torch.cat([value.detach()[None], *parts]))
        rows = torch.stack(rows)
        return rows.mean(0), rows.var(0) / len(rows)

    torch.manual_seed(1)
    theirs = means(by_hand)
    model, guide, objective, texts = method.programs(reader, tuple(train.inputs), len(train))
    for _ in range(method.budget.steps):  # beyond the warm-up
        objective.differentiable_loss(model, guide, packed(batch))
    ours = means(lambda: objective.differentiable_loss(model, guide, packed(batch)) / texts)
    error = (theirs[1] + ours[1]).sqrt() + 1e-7
    assert float(((theirs[0] - ours[0]).abs() / error).max()) < 5


def test_what_is_not_finite_ends_a_training_with_its_parameter():
    base, train, _ = sets()
    with torch.no_grad():
        next(base.network.parameters()).fill_(float("nan"))
    with pytest.raises(
        gb.TrainingDiverged, match="^steps 0, 1, 2: loss or gradient not finite, first in model.reader.network"
    ):
        train_adapter("lora", base, train, 2, BUDGET)


def test_batches_go_through_all_texts_and_have_their_own_order():
    _, train, _ = sets()
    batches = iter(TextBatches(train, 8, 0))
    seen = torch.cat([next(batches).y for _ in range(3)])
    assert torch.equal(seen.sort().values, train.labels.sort().values)
    few = train.take(torch.arange(3))
    assert [len(batch.y) for batch in islice(TextBatches(few, 8, 0), 4)] == [8] * 4
    first, again = (next(iter(TextBatches(train, 8, seed))).x for seed in (1, 1))
    assert torch.equal(first, again)


def test_a_sparse_subspace_keeps_its_size_and_the_rest_of_a_is_zero():
    found = trained("sparse-subspace")[0].method
    weights = torch.cat([factor.weight.flatten() for factor in found.factors])
    active = torch.cat([a.flatten() for a in found.active])
    assert int(active.sum()) == round(0.1 * len(weights)) and not bool(weights[~active].any())
    assert bool((torch.cat([f.log_scale.flatten() for f in found.factors])[active] > -10).all())
    start = build_reader("sparse-subspace", sets()[0], 2, 24, BUDGET, 0)[1]
    assert not torch.equal(torch.cat([a.flatten() for a in start.active]), active)  # it has moved


def test_only_variational_methods_have_scales_and_the_control_keeps_its():
    found = trained("lrvd")[0]
    steps, last = [step for step, _ in found.scales], found.scales[-1][1]
    assert steps == [0, 1, 2, 3, 4, 5, 6] and {value.shape for value in last.values()} == {(4,)}
    assert all(float((value + 4).abs().min()) > 1 for value in last.values())  # the step budget lets them travel
    control = trained("fixed-noise")[0].scales[-1][1]
    assert all(torch.equal(value, torch.zeros(4)) for value in control.values())
    assert trained("lora")[0].scales == []


def test_ranks_are_taken_away_by_sora_and_adalora():
    found = trained("sora")[0]
    gates = torch.cat([gate.detach() for gate in found.method.gates])
    assert sum(found.method.ranks().values()) == int((gates != 0).sum()) < 48
    assert float(gates.max()) < 1.0  # the shrinkage outweighs so short a training
    base, train, _ = sets()
    budget = AdapterBudget(steps=40, batch_size=8, rank=4, learning_rate=5e-3)
    assert sum(train_adapter("adalora", base, train, 2, budget).method.ranks().values()) == 12


def test_the_best_state_is_that_of_the_lowest_validation_nll():
    found, _, test = trained("lora")
    assert found.best_state is None
    base, train, test = sets()
    found = train_adapter("lora", base, train, 2, BUDGET, 0, test)
    assert 1 <= found.best_step <= BUDGET.steps
    load_trained_state(found.reader, found.best_state)
    with pytest.raises(ValueError, match="state: it is of another adapter"):
        load_trained_state(found.reader, {"x": torch.zeros(1)})


def test_language_models_shift_their_labels_once():
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[1, 2, 3, -100], [0, 4, -100, -100]])
    log_probs = logits.log_softmax(-1)
    expected = -(log_probs[0, 0, 2] + log_probs[0, 1, 3] + log_probs[1, 0, 4]) / 3
    torch.testing.assert_close(-NextTokens(logits).log_prob(labels.float()).sum() / 3, expected)
    base = tiny_network("gpt2", TRAIN.texts)
    blocks = token_blocks(base, TRAIN.texts, 8)
    found = train_adapter("lrvd", base, blocks, 0, BUDGET)
    assert found.method.num_data == len(blocks) * 7


def test_adapters_of_a_bfloat16_llama_are_trained_in_float32():
    questions = template_sentences(8, questions=True)
    base = tiny_network("llama", questions.texts)
    base.network.to(torch.bfloat16)
    found = train_adapter("lrvd", base, tokenise(base, questions), 2, BUDGET)
    assert {p.dtype for p in found.reader.parameters() if p.requires_grad} == {torch.float32}
    assert predict_classes(found.reader, tokenise(base, questions)).dtype == torch.float32


def test_letters_are_read_behind_the_last_token():
    questions = template_sentences(6, questions=True)
    base = tiny_network("llama", questions.texts)
    tokens = tokenise(base, questions)
    reader, _ = build_reader("lora", base, 2, 6, BUDGET, 0)
    reader.eval()
    alone = reader.network(**tokens.take(torch.tensor([2])).inputs).logits[0, -1, reader.letters]
    torch.testing.assert_close(reader(tokens.inputs)[2], alone, atol=1e-5, rtol=1e-4)


def test_truncation_keeps_the_largest_components():
    found, _, test = trained("lora")
    reader, whole = found.reader, predict_classes(found.reader, test)
    state = trained_state(reader)

    def updates():
        layers = lora_layers(reader).items()
        return {path: (at.lora_B["default"].weight @ at.lora_A["default"].weight).detach() for path, at in layers}

    full = updates()
    assert sum(truncate_ranks(reader.network, 48).values()) == 48
    torch.testing.assert_close(predict_classes(reader, test), whole, atol=1e-6, rtol=1e-5)
    values = torch.cat([torch.linalg.svdvals(update)[:4] for update in full.values()]).sort().values
    left = {}
    for by in ("svd", "magnitude"):
        load_trained_state(reader, state)
        ranks = truncate_ranks(reader.network, 10, by)
        assert sum(ranks.values()) == 10
        left[by] = sum(float((full[path] - update).square().sum()) for path, update in updates().items())
    assert left["svd"] == pytest.approx(float(values[:-10].square().sum()), rel=1e-3)
    assert left["svd"] < left["magnitude"]
    with pytest.raises(ValueError, match="total_rank: got 49"):
        truncate_ranks(reader.network, 49)
    with pytest.raises(ValueError, match="by: got 'x'"):
        truncate_ranks(reader.network, 4, "x")


@pytest.mark.parametrize("architecture", ["minilm", "deberta"])
def test_jacobians_and_covariances_of_laplace_are_exact(architecture):
    """DeBERTa projects relative positions once for all texts, and with the same matrices as the tokens."""
    found, train, test = trained("lora", architecture=architecture)
    test.inputs["attention_mask"][1, -2:] = 0  # texts of several lengths
    laplace = AdapterLaplace(found.reader, (1.0, 100.0)).fit(train, batch_size=5)
    few = test.take(torch.arange(3))
    logits, jacobians = laplace._jacobians(few)
    weights = [linear.weight for linear in laplace.linears]
    for n, c in ((0, 1), (2, 0)):
        expected = torch.autograd.grad(found.reader(few.inputs)[n, c], weights)
        for got, exact in zip(jacobians, expected, strict=True):
            torch.testing.assert_close(got[n, c], exact, atol=1e-5, rtol=1e-3)
    # the curvature of two classes is p (1 - p) (J_1 - J_0)², summed over texts
    logits, jacobians = laplace._jacobians(train)
    probs = logits.softmax(-1)
    weight = (probs[:, 0] * probs[:, 1]).reshape(-1, 1, 1)
    for got, jacobian in zip(laplace.curvature, jacobians, strict=True):
        expected = (weight * (jacobian[:, 1] - jacobian[:, 0]).square()).sum(0)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)
    posterior = laplace.posterior(test, batch_size=4)
    assert bool(
        (posterior.covariance[0].diagonal(dim1=-1, dim2=-2) > posterior.covariance[1].diagonal(dim1=-1, dim2=-2)).all()
    )
    assert laplace.choose(test) in (1.0, 100.0)
    assert laplace.predict(test, 7).shape == (7, 10, 2)


def test_kronecker_factors_of_laplace_are_exact_for_one_token_and_used_in_their_eigenbasis():
    found, train, test = trained("lora")
    one = train.take(torch.arange(1))
    one = one.__class__({name: value[:, :1] for name, value in one.inputs.items()}, one.labels)
    laplace = AdapterLaplace(found.reader, (0.1, 3.0), "kronecker").fit(one)
    _, jacobians = laplace._jacobians(one)
    probs = found.reader(one.inputs).softmax(-1)[0].detach()
    root = probs.diag() - torch.outer(probs, probs)
    few = test.take(torch.arange(3))
    logits, others = laplace._jacobians(few)
    expected = torch.zeros(3, 2, 2)
    for number, (jacobian, other) in enumerate(zip(jacobians, others, strict=True)):
        flat = jacobian[0].flatten(1)
        dense = flat.T @ root @ flat
        u, v = laplace.bases[number]
        rotation = torch.kron(u, v)
        rebuilt = rotation @ laplace.curvature[number].flatten().diag() @ rotation.T
        torch.testing.assert_close(rebuilt, dense, atol=1e-4 * float(dense.abs().max()) + 1e-9, rtol=1e-3)
        covariance = torch.linalg.inv(dense + 3.0 * torch.eye(len(dense)))
        expected += other.flatten(2) @ covariance @ other.flatten(2).mT
    posterior = laplace.posterior(few, batch_size=2)
    torch.testing.assert_close(posterior.mean, logits)
    torch.testing.assert_close(posterior.covariance[1], expected, atol=1e-5, rtol=1e-3)
    whole = AdapterLaplace(found.reader, (1.0, 100.0), "kronecker").fit(train, batch_size=5)
    assert whole.choose(test) in (1.0, 100.0) and whole.predict(test, 7).shape == (7, 10, 2)
    with pytest.raises(ValueError, match=r"^structure: got 'dense'; it must be 'diagonal' or 'kronecker'$"):
        AdapterLaplace(found.reader, structure="dense")


def test_draws_of_logits_have_the_covariance():
    covariance = torch.tensor([[[[2.0, 0.5], [0.5, 1.0]]]])
    draws = LogitPosterior(torch.zeros(1, 2), covariance).draw(0, 20_000)
    difference = (draws[..., 0] / draws[..., 1]).log()
    assert float(difference.var()) == pytest.approx(2.0 + 1.0 - 2 * 0.5, rel=0.05)


def test_bad_input_gets_one_line(monkeypatch):
    base, _, _ = sets()
    with pytest.raises(ValueError, match="method: got 'x'; it must be one of lora"):
        build_reader("x", base, 2, 10, BUDGET, 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DataError, match="pip install guidebook\\[adapters\\]"):
        build_reader("lora", sets()[0], 2, 10, BUDGET, 0)
