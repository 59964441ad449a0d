"""The weight of the KL, the learning rate of log α, and Hugging Face's Trainer around them."""

import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import hotswap
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from guides import RankwiseGuide
from guides.adapters.lrvd_layers import KLWatch, kl_divergence, lrvd_modules, rank_log_alpha
from guides.adapters.lrvd_peft import LrvdConfig
from inference import TrainingDiverged
from inference.adapters.lrvd_training import (
    LrvdCallback,
    LrvdObjective,
    LrvdTrainerMixin,
    log_alpha_learning_rate,
    noise_parameters,
    parameter_groups,
)
from inference.adapters.rank_pruning import module_ranks
from pp_models import LowRankAdapted, log_uniform_kl
from pp_models.adapters.tempering import Tempering
from tests.tiny_transformers import tiny_bert, tiny_gpt2, token_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]


ROOT = Path(__file__).parents[3]


class LrvdTrainer(LrvdTrainerMixin, Trainer):
    pass


def adapted(base=None, targets=("query", "value"), **options):
    base = tiny_bert() if base is None else base
    return get_peft_model(base, LrvdConfig(r=3, target_modules=list(targets), **options))


def arguments(folder, **options):
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2} | options
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", seed=0, **options
    )


def rows(n=8, labels=None):
    ids = token_ids(n)
    labels = torch.arange(n) % 2 if labels is None else labels(ids)
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


# -- the weight --------------------------------------------------------------------------------------------------------


def test_the_warm_up_and_the_weight():
    assert [Tempering(warmup_steps=4).beta(t) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Tempering().beta(0) == Tempering(warmup_steps=None).beta(7) == 1.0
    model = adapted()
    kl = float(kl_divergence(model).detach())
    objective = LrvdObjective(num_data=50, temperature=2.0, warmup_steps=4)
    assert abs(float(objective.penalty(model, 1).detach()) - 0.5 * 2 / 50 * kl) < 1e-5
    assert objective.effective_temperature(model) == 2.0
    counted = LrvdObjective(num_data=50, kl_count="weights", kl_weight=1e-6)
    assert abs(counted.effective_temperature(model) - 1e-6 * 50 * 32) < 1e-12
    assert abs(float(counted.penalty(model, 0).detach()) - 1e-6 * 32 * kl) < 1e-6


def test_the_temperature_of_the_released_constant():
    base = nn.Sequential(nn.Linear(768, 768))
    model = get_peft_model(base, LrvdConfig(r=8, target_modules=["0"]))
    for n, kappa in {2490: 3.8, 3668: 5.6, 8551: 13, 67349: 103, 392702: 603}.items():
        found = LrvdObjective(n, kl_count="weights", kl_weight=1e-6).effective_temperature(model)
        assert abs(found / kappa - 1) < 0.02


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 300, 3000])
def test_the_learning_rate_is_the_travel_over_the_steps(schedule, steps):
    rate = log_alpha_learning_rate(steps, 14.0, schedule, warmup_steps=steps // 10)
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([p], lr=rate, betas=(0.0, 0.0), eps=0.0)
    factors = {
        "constant": lambda r: 1.0,
        "linear": lambda r: 1 - r,
        "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
    }
    w = steps // 10
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: (t + 1) / w if t < w else factors[schedule]((t - w) / (steps - w))
    )
    for _ in range(steps):
        p.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    assert abs(float(p.detach()) + 14.0) < 1e-2


def test_the_specified_rate():
    assert abs(log_alpha_learning_rate(300, 12.0) - 0.08) < 0.001


def test_parameter_groups():
    model = adapted()
    weights, noise = parameter_groups(model, 1e-3, 300, weight_decay=0.1)
    assert {id(p) for p in noise["params"]} == {id(p) for n, p in model.named_parameters() if "lora_lrvd" in n}
    assert weights["lr"] == 1e-3 and weights["weight_decay"] == 0.1 and noise["weight_decay"] == 0.0
    assert abs(noise["lr"] - 14 / 150.5) < 1e-6
    own = LowRankAdapted(nn.Sequential(nn.Linear(3, 3)), ["0"], rank=2)
    guide = RankwiseGuide(own)
    assert noise_parameters(own, guide) == list(guide.parameters())
    torch.optim.Adam(parameter_groups(own, 1e-3, 300, guide=guide))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LrvdObjective(0), r"^num_data: got 0; it must be at least 1$"),
        (lambda: LrvdObjective(5, kl_count="layer"), r"^kl_count: got 'layer'; it must be 'rank' or 'weights'$"),
        (
            lambda: LrvdObjective(5, kl_weight="map"),
            r"^kl_weight: got 'map'; it must be 'elbo' or a number that is finite and not negative$",
        ),
        (lambda: LrvdObjective(5, temperature=-1.0), r"^temperature: got -1.0; it must be finite and not negative$"),
        (
            lambda: LrvdObjective(5, warmup_steps=-1),
            r"^warmup_steps: got -1; it must be finite and not negative, or None$",
        ),
        (lambda: log_alpha_learning_rate(0), r"^steps: got 0; it must be at least 1$"),
        (lambda: log_alpha_learning_rate(5, 0.0), r"^travel: got 0.0; it must be positive and finite$"),
        (lambda: log_alpha_learning_rate(5, schedule="steps"), r"^schedule: got 'steps'; it must be one of constant"),
        (lambda: LrvdCallback(prune_every=-1), r"^prune_every: got -1; it must be at least 0, or None$"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# -- the Trainer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_the_kl_counts_once_a_step_however_batches_are_accumulated(kind, accumulation, tmp_path):
    """Without noise log α has no gradient but the KL's, and plain SGD shows it as the step."""
    if kind == "classifier":
        model, data = adapted(noise="none"), rows()  # its loss is a mean over a batch
    else:  # its loss is a mean over the labels of all batches of a step
        model = adapted(tiny_gpt2(), ("c_attn",), noise="none")
        data = rows(labels=lambda ids: ids)
    objective = LrvdObjective(num_data=8, temperature=0.5, warmup_steps=0)
    trainer = LrvdTrainer(
        model=model,
        args=arguments(
            tmp_path,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
        ),
        train_dataset=data,
        lrvd=objective,
        travel=1.0,  # in one step: the learning rate of log α
    )
    before = torch.cat(list(rank_log_alpha(model).values())).requires_grad_()
    (slope,) = torch.autograd.grad(log_uniform_kl(before).sum(), before)
    trainer.train()
    after = torch.cat(list(rank_log_alpha(model).values()))
    torch.testing.assert_close(after - before.detach(), -0.5 / 8 * slope, rtol=1e-3, atol=1e-6)


def test_a_trainer_logs_and_prunes(tmp_path):
    model = adapted()
    callback = LrvdCallback(prune_every=3, min_steps=6, threshold=20.0)
    trainer = LrvdTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=8, logging_steps=2),
        train_dataset=rows(),
        lrvd=LrvdObjective(num_data=8),
        callbacks=[callback],
    )
    with torch.no_grad():
        for module in lrvd_modules(model).values():
            module.lora_lrvd_log_alpha["default"][:] = torch.tensor([-9.0, 30.0, -9.0])
    trainer.train()
    assert [s for s, _ in callback.history] == [6, 8]
    assert callback.soft_counts[0] == (2, 8)
    assert set(module_ranks(model).values()) == {2}
    assert {len(p) for p in noise_parameters(model)} == {2}
    logs = [row for row in trainer.state.log_history if "kappa" in row]
    assert [row["total_rank"] for row in logs] == [12, 12, 8, 8]
    assert all(row["kappa"] == 1.0 and math.isfinite(row["kl"]) for row in logs)
    assert logs[-1]["beta"] == 1.0  # warmed up over a fifth of 8 steps
    rates = {g["lr"] for g in trainer.optimizer.param_groups if g.get("noise_levels")}
    assert rates != {1e-2} and len(rates) == 1


def test_evaluation_has_no_kl(tmp_path):
    model = adapted(noise="none")
    trainer = LrvdTrainer(
        model=model, args=arguments(tmp_path), train_dataset=rows(), eval_dataset=rows(), lrvd=LrvdObjective(num_data=1)
    )
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        batch = {k: torch.stack([r[k] for r in rows()]) for k in ("input_ids", "labels")}
        assert abs(found - float(model.eval()(**batch).loss)) < 1e-5


def test_a_loss_that_is_not_finite_ends_training_in_one_line(tmp_path):
    model = adapted()
    with torch.no_grad():
        model.base_model.model.classifier.weight.fill_(torch.nan)
    trainer = LrvdTrainer(
        model=model, args=arguments(tmp_path, max_steps=3), train_dataset=rows(), lrvd=LrvdObjective(num_data=8)
    )
    with pytest.raises(
        TrainingDiverged, match=r"^step 0: loss or gradient not finite; try a smaller learning_rate"
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_two_processes_count_the_kl_once(tmp_path):
    script = f"""
import os, sys, warnings
rank = int(sys.argv[1])
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
warnings.simplefilter("ignore")
import torch
from safetensors.torch import save_file
from guides.adapters.lrvd_layers import rank_log_alpha
from inference.adapters.lrvd_training import LrvdCallback, LrvdObjective
from tests.inference.adapters.test_lrvd_training import LrvdTrainer, adapted, arguments, rows

noisy = adapted()
objective = LrvdObjective(num_data=8, warmup_steps=0)
options = dict(optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", ddp_backend="gloo")
trainer = LrvdTrainer(
    model=noisy, args=arguments({str(tmp_path)!r}, max_steps=2, **options), train_dataset=rows(), lrvd=objective
)
trainer.train()
model = adapted(noise="none")
callback = LrvdCallback(prune_every=1, threshold=5.0)
trainer = LrvdTrainer(
    model=model,
    args=arguments({str(tmp_path)!r}, **options),
    train_dataset=rows(),
    lrvd=objective,
    travel=1.0,
    callbacks=[callback],
)
trainer.train()
assert trainer.args.world_size == 2 and len(callback.history) == 1
save_file(rank_log_alpha(model), {str(tmp_path)!r} + f"/found-{{rank}}.safetensors")
save_file(rank_log_alpha(noisy), {str(tmp_path)!r} + f"/noisy-{{rank}}.safetensors")
"""
    for _ in range(3):  # gloo's first connection between the processes is sometimes closed before anything of ours ran
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        call = [sys.executable, "-c", script]
        processes = [
            subprocess.Popen([*call, str(rank), port], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in range(2)
        ]
        errors = [process.communicate(timeout=300)[1] for process in processes]
        if not any("Connection closed by peer" in e and "_verify_params_across_processes" in e for e in errors):
            break
    assert [process.returncode for process in processes] == [0, 0], errors
    start = torch.full((3,), -4.0, requires_grad=True)
    (slope,) = torch.autograd.grad(log_uniform_kl(start).sum(), start)
    for rank in range(2):
        for value in load_file(tmp_path / f"found-{rank}.safetensors").values():
            torch.testing.assert_close(value - start.detach(), -slope / 8, rtol=1e-3, atol=1e-6)
    first, second = (load_file(tmp_path / f"noisy-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[path], second[path]) for path in first)
    assert not all(torch.equal(first[path], start) for path in first)


# -- pruning in a Trainer, its checkpoints, and what is said -----------------------------------------------------------


def pruned_trainer(folder, callback, kind=LrvdTrainer, **options):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2} | options
    model = adapted()
    with torch.no_grad():
        for i, module in enumerate(lrvd_modules(model).values()):
            module.lora_lrvd_log_alpha["default"][:] = torch.tensor([-9.0, 30.0, -9.0]) + 40 * (i == 1)
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, logging_steps=100,
        per_device_train_batch_size=2, learning_rate=1e-2, **options,
    )  # fmt: skip
    own = {"lrvd": LrvdObjective(num_data=16)} if kind is LrvdTrainer else {}
    return kind(model=model, args=args, train_dataset=rows(16), eval_dataset=rows(), callbacks=[callback], **own)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_a_pruned_training_is_resumed_to_the_same_numbers(tmp_path):
    whole = pruned_trainer(tmp_path / "whole", LrvdCallback(prune_every=4, threshold=20.0))
    whole.train()
    assert sorted(module_ranks(whole.model).values()) == [0, 2, 2, 2]
    again = pruned_trainer(tmp_path / "again", LrvdCallback(prune_every=4, threshold=20.0))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    expected, found = weights(whole.model), weights(again.model)
    assert expected.keys() == found.keys()
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, rtol=0, atol=0)
    assert again.model.peft_config["default"].rank_pattern == whole.model.peft_config["default"].rank_pattern


@pytest.mark.filterwarnings("ignore:step 8. nothing was pruned:UserWarning")
def test_the_best_model_of_other_ranks_is_loaded_at_the_end(tmp_path):
    callback = LrvdCallback(prune_every=4, threshold=20.0)
    trainer = pruned_trainer(
        tmp_path,
        callback,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    losses, real = iter([0.1, 0.2, 0.3, 0.4]), trainer.evaluate
    trainer.evaluate = lambda *a, **k: real(*a, **k) | {"eval_loss": next(losses)}
    ranks = []
    trainer._load_best = trainer._load_best_model
    trainer._load_best_model = lambda: (trainer._load_best(), ranks.append(module_ranks(trainer.model)))
    trainer.train()
    assert [set(each.values()) for each in ranks] == [{3}]  # the best checkpoint is older than the first pruning
    assert [step for step, _ in callback.history] == [4, 8, 8]  # what was loaded is pruned again
    best = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    for path, module in lrvd_modules(trainer.model).items():
        if module.factors() is not None:
            saved = best[f"base_model.model.{path}.lora_A.weight"]
            assert torch.equal(module.factors()[0], saved[[0, 2]])


def test_training_is_kept_where_every_rank_would_go(tmp_path):
    callback = LrvdCallback(prune_every=4, threshold=-20.0)
    trainer = pruned_trainer(tmp_path, callback)
    with pytest.warns(UserWarning, match=r"^step [48]: nothing was pruned; threshold: got -20.0; it would prune"):
        trainer.train()
    assert trainer.state.global_step == 8 and callback.history == []
    assert set(module_ranks(trainer.model).values()) == {3}


def test_the_default_callback_does_not_end_a_training(tmp_path):
    trainer = pruned_trainer(tmp_path, LrvdCallback())
    with torch.no_grad():
        for module in lrvd_modules(trainer.model).values():
            module.lora_lrvd_log_alpha["default"][:] = 30.0
    with pytest.warns(UserWarning, match=r"^step 8: nothing was pruned; threshold: got 1.0; it would prune"):
        trainer.train()
    assert trainer.state.global_step == 8


def test_a_trainer_without_the_mixin_says_that_no_kl_is_trained(tmp_path):
    trainer = pruned_trainer(tmp_path, LrvdCallback(prune_every=0), Trainer, max_steps=2)
    with pytest.warns(UserWarning, match=r"^LRVD layers train without their KL.*LrvdTrainerMixin") as said:
        trainer.train()
    assert len(said) == 1


def test_a_loop_without_a_kl_is_noticed_and_one_with_it_is_not():
    model = adapted().train()
    for _ in range(KLWatch.PATIENCE - 1):
        model(token_ids())
    with pytest.warns(UserWarning, match=r"^LRVD layers train without their KL") as said:
        for _ in range(10):
            model(token_ids())
    assert len(said) == 1
    model = adapted().train()
    kl_divergence(model)
    for _ in range(KLWatch.PATIENCE + 3):
        model(token_ids())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "half"}, r"^threshold: got 'half'; it must be 'gap' or a number that is finite$"),
        ({"budget": -1}, r"^budget: got -1; it must be at least 0, or None$"),
    ],
)
def test_a_callback_is_refused_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        LrvdCallback(**options)


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        ({"prune_every": 4}, {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2},
         r"^load_best_model_at_end: got True with prune_every=4, .*derive the Trainer from LrvdTrainerMixin"),
        ({}, {"optim": "adafactor"}, r"^optimizer: its state 'exp_avg_sq_row' has shape"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:LRVD layers train without:UserWarning")
def test_what_cannot_be_pruned_is_refused_before_it_is_trained(callback, options, message, tmp_path):
    trainer = pruned_trainer(tmp_path, LrvdCallback(**callback), Trainer, **options)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and trainer.state.global_step <= 1


@pytest.mark.filterwarnings("ignore:LRVD layers train without:UserWarning")
def test_a_plain_trainer_cannot_resume_a_pruned_adapter_and_says_who_can(tmp_path):
    pruned_trainer(tmp_path, LrvdCallback(prune_every=4, threshold=20.0), max_steps=4).train()
    trainer = pruned_trainer(tmp_path, LrvdCallback(), Trainer)
    with pytest.raises(ValueError, match=r"has rank 2 at '.*', and the model 3; .* by LrvdTrainerMixin$") as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
def test_a_hot_swap_is_refused_before_anything_is_swapped(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    before = weights(model)
    plain = get_peft_model(tiny_bert(), LoraConfig(r=3, target_modules=["query", "value"]))
    for other in (model, plain):
        with pytest.raises(ValueError, match=r"^hotswap: LRVD adapters cannot be swapped in place"):
            hotswap.hotswap_adapter(other, str(tmp_path), "default", torch_device="cpu")
    with pytest.raises(ValueError, match=r"^hotswap: LRVD adapters cannot be swapped in place"):
        hotswap.prepare_model_for_compiled_hotswap(model, target_rank=5)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    target = tmp_path / "plain"
    plain.save_pretrained(target)
    hotswap.hotswap_adapter(plain, str(target), "default", torch_device="cpu")
