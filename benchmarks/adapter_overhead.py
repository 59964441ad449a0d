"""What a training step of LRVD costs against plain LoRA in peft, on one transformer, in one run and in pairs.

Run: python -m benchmarks.adapter_overhead [--steps 30] [--width 384] [--layers 6]

Both adapt the same linear layers of the same BERT (randomly initialised, of MiniLM-L6's sizes) at the same rank, with
AdamW. Steps are interleaved, their order alternating, and the median of the pairwise ratios is printed with its
quartiles. The KL is part of the LRVD step.
"""

import argparse
import statistics
import time
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from guides.lrvd_peft import LrvdConfig
from inference.lrvd_training import LrvdObjective, parameter_groups

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


def pair(config: LoraConfig, width: int, layers: int, steps: int):
    """A function that makes one training step and returns its seconds."""
    model = get_peft_model(backbone(width, layers), config).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, steps), fused=True)
    objective = LrvdObjective(num_data=1000, warmup_steps=steps // 5) if isinstance(config, LrvdConfig) else None
    ids, labels = torch.randint(1000, (BATCH, LENGTH)), torch.randint(2, (BATCH,))

    def step(i: int) -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        if objective is not None:
            loss = loss + objective.penalty(model, i)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def ratios(lrvd: LrvdConfig, width: int, layers: int, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of LRVD's steps, of LoRA's, and their pairwise ratios."""
    functions = [pair(lrvd, width, layers, steps), pair(LoraConfig(r=8, target_modules=TARGETS), width, layers, steps)]
    times: list[list[float]] = [[], []]
    for i in range(steps + 3):
        for k in (0, 1) if i % 2 else (1, 0):
            seconds = functions[k](i)
            if i >= 3:
                times[k].append(seconds)
    return times[0], times[1], [a / b for a, b in zip(*times, strict=True)]


def main(steps: int = 30, width: int = 384, layers: int = 6) -> dict[str, float]:
    """Prints a row for each way to draw, and returns the median ratios."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} interleaved pairs of steps")
    print(f"BERT {layers} x {width}, rank 8 in {6 * layers} linear layers, {BATCH} sequences of {LENGTH} tokens")
    found = {}
    for name, options in {
        "rank, per sequence": {},
        "rank, per token": {"noise": "token"},
        "rank, per call": {"noise": "call"},
        "shared_sigma, per sequence": {"family": "shared_sigma"},
    }.items():
        ours, theirs, ratio = ratios(LrvdConfig(r=8, target_modules=TARGETS, **options), width, layers, steps)
        low, middle, high = statistics.quantiles(ratio, n=4)
        found[name] = middle
        print(
            f"{name:26s} {1e3 * statistics.median(ours):7.1f} ms, "
            f"plain LoRA {1e3 * statistics.median(theirs):7.1f} ms, "
            f"ratio {middle:.3f} (quartiles {low:.3f}-{high:.3f})"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # transformers' own deprecations
    main(options.steps, options.width, options.layers)
