"""What a training step of LRVD, and of its rivals, costs against plain LoRA in peft: in one run, step by step in turns.

Run: python -m benchmarks.adapter_overhead [--steps 30] [--width 384] [--layers 6]

The first table: LRVD and LoRA adapt the same linear layers of the same BERT (randomly initialised, of MiniLM-L6's
sizes) at the same rank, with AdamW. Steps are interleaved, their order alternating, and the median of the pairwise
ratios is printed with its quartiles. The KL is part of the LRVD step.

The second table: a step of every method of the text experiments, on MiniLM-L6 itself, each in turn.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from evaluation.adapters.adapter_method import AdapterBudget
from evaluation.adapters.adapter_methods import ADAPTER_METHODS
from evaluation.adapters.adapter_training import TextBatches, build_reader, make_optimizer
from guides.adapters.lrvd_peft import LrvdConfig
from inference.adapters.lrvd_training import LrvdObjective, parameter_groups
from pp_models.adapters.half_frozen import half_frozen
from pp_models.adapters.text_networks import load_network, tokenise
from pp_models.tasks.text_tasks import template_sentences

TARGETS = ["query", "key", "value", "output.dense", "intermediate.dense"]
LENGTH, BATCH = 40, 16


def backbone(width: int, layers: int) -> nn.Module:
    """The transformer to adapt."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 32, 1),
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def pair(config: LoraConfig, width: int, layers: int, steps: int, half: bool = False):
    """A function that makes one training step, with the frozen layers in bfloat16 where asked for."""
    model = get_peft_model(backbone(width, layers), config).train()
    if half:
        half_frozen(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, steps), fused=True)
    objective = LrvdObjective(num_data=1000, warmup_steps=steps // 5) if isinstance(config, LrvdConfig) else None
    ids, labels = torch.randint(1000, (BATCH, LENGTH)), torch.randint(2, (BATCH,))

    def step(i: int) -> None:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        if objective is not None:
            loss = loss + objective.penalty(model, i)
        loss.backward()
        optimizer.step()

    return step


def in_turns(functions: dict[str, Callable[[int], Any]], steps: int) -> dict[str, tuple[list[float], list[float]]]:
    """By name the seconds of steps taken in turns, and their ratios to those of "lora" in the same round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(steps + 3):  # the first three are not counted
        for name in list(functions)[:: 1 if i % 2 else -1]:
            started = time.perf_counter()
            functions[name](i)
            if i >= 3:
                times[name].append(time.perf_counter() - started)
    return {name: (found, [a / b for a, b in zip(found, times["lora"], strict=True)]) for name, found in times.items()}


def method_steps(steps: int) -> dict[str, Callable[[int], Any]]:
    """A function that makes one training step, by method of the text experiments."""
    sentences = template_sentences(8 * BATCH)
    budget = AdapterBudget(steps=steps + 3, batch_size=BATCH)

    def step_of(name: str) -> Callable[[int], Any]:
        base = load_network("minilm")
        texts = tokenise(base, sentences)
        reader, method = build_reader(name, base, 2, len(texts), budget, 0)
        model, guide, objective, _ = method.programs(reader, tuple(texts.inputs), len(texts))
        model.train()
        guide.train()
        trained = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
        optimizer = make_optimizer(trained, method, budget.learning_rate)
        batches = iter(TextBatches(texts, BATCH, 0))

        def step(i: int) -> None:
            optimizer.zero_grad()
            with pyro.validation_enabled(False):  # as in a fit
                objective.differentiable_loss(model, guide, next(batches)).backward()
            optimizer.step()
            if method.after_step is not None:
                method.after_step(i, 1.0)

        return step

    return {name: step_of(name) for name in ADAPTER_METHODS}


def quartiles(ratio: list[float]) -> str:
    """The median with its quartiles."""
    low, middle, high = statistics.quantiles(ratio, n=4)
    return f"{middle:.3f} (quartiles {low:.3f}-{high:.3f})"


def main(steps: int = 30, width: int = 384, layers: int = 6) -> dict[str, float]:
    """Prints a row for each way to draw, and returns the median ratios."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} interleaved pairs of steps")
    print(f"BERT {layers} x {width}, rank 8 in {6 * layers} linear layers, {BATCH} sequences of {LENGTH} tokens")
    found = {}
    for name, options in {
        "rank, per sequence": {},
        "rank, per token": {"noise": "token"},
        "rank, per call": {"noise": "call"},
        "rank, frozen in bfloat16": {"half": True},
        "shared_sigma, per sequence": {"family": "shared_sigma"},
    }.items():
        half = options.pop("half", False)
        functions = {
            "lrvd": pair(LrvdConfig(r=8, target_modules=TARGETS, **options), width, layers, steps, half),
            "lora": pair(LoraConfig(r=8, target_modules=TARGETS), width, layers, steps),
        }
        times = in_turns(functions, steps)
        seconds, ratio = times["lrvd"]
        found[name] = statistics.median(ratio)
        print(
            f"{name:26s} {1e3 * statistics.median(seconds):7.1f} ms, "
            f"plain LoRA {1e3 * statistics.median(times['lora'][0]):7.1f} ms, ratio {quartiles(ratio)}"
        )
    print(f"MiniLM-L6, rank 8 in 36 linear layers, {BATCH} short sentences")
    for name, (seconds, ratio) in in_turns(method_steps(steps), steps).items():
        print(f"{name:26s} {1e3 * statistics.median(seconds):7.1f} ms, ratio to lora {quartiles(ratio)}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # transformers' own deprecations
    main(options.steps, options.width, options.layers)
