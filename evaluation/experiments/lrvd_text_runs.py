"""Trained adapters of the text experiments: each run leaves one safetensors file and is read back from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.adapters.adapter_method import AdapterBudget, PlainLora
from evaluation.adapters.adapter_post_hoc import AdapterLaplace, TrainingFree, mask_ranks, truncate_ranks
from evaluation.adapters.adapter_reader import AdaptedReader
from evaluation.adapters.adapter_training import (
    build_reader,
    load_trained_state,
    predict_classes,
    train_adapter,
    trained_state,
)
from evaluation.scores.calibration_metrics import accuracy, average_draws
from inference.adapters.rank_pruning import prune_ranks
from pp_models.adapters.text_networks import TextNetwork, TokenSet
from pp_models.files import make_folder, write_atomically
from pp_models.sealed_tensors import read_sealed_tensors, sealed_tensors

#: thresholds of log α of the curve of accuracy against rank, and those that predictions are pruned at
SWEEP = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
PRUNED_AT = (2.0, 1.0)
#: methods that are pruned
PRUNED = ("lrvd", "lrvd-kappa-3")
#: the share of all ranks that is left by the strictest pruning
TENTH = 10
#: texts that everything is predicted for
PREDICTED = ("validation", "test", "odd")
LAPLACE_DRAWS = 100
MOST_RUN_BYTES = 2**33


@dataclass(frozen=True)
class Run:
    """What a run left.

    Args:
        tensors: predictions ``[S, n, C]`` as ``{mean,draws,...}.{validation,test,odd}``, trained parameters as
            ``state.*`` and log α as ``scales.{step}.{module}``.
        facts: numbers by name.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with ``prefix.``, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}

    def scales(self) -> list[tuple[int, dict[str, Tensor]]]:
        """log α by module over the steps of the training."""
        by_step: dict[int, dict[str, Tensor]] = {}
        for name, value in self.group("scales").items():
            step, _, module = name.partition(".")
            by_step.setdefault(int(step), {})[module] = value
        return sorted(by_step.items())


@dataclass(frozen=True, eq=False)
class TextRuns:
    """Runs of one task at one scale.

    Args:
        folder: where they are kept.
        load: makes a transformer of its own.
        sets: tokenised ``train``, ``validation``, ``test`` and ``odd`` texts.
        num_classes: C.
        budget: the same for every method.
        say: shows a line of progress.
        device: where to train and predict.
    """

    folder: Path
    load: Callable[[], TextNetwork]
    sets: dict[str, TokenSet]
    num_classes: int
    budget: AdapterBudget
    say: Callable[[str], None]
    device: torch.device

    def _kept(self, name: str, make: Callable[[], Run]) -> Run:
        path = make_folder(self.folder, "out") / f"{name}.safetensors"
        if path.is_file():
            return Run(*read_sealed_tensors(path, MOST_RUN_BYTES))
        self.say(f"{self.folder.name}: {name}")
        run = make()
        write_atomically(path, sealed_tensors(run.tensors, run.facts))
        return run

    def predictions(self, reader: AdaptedReader, name: str, method: PlainLora | None, seed: int) -> dict[str, Tensor]:
        """Probabilities of held-out, test and odd texts at the mean, and of draws where the method has any."""
        found = {f"{name}mean.{kind}": predict_classes(reader, self.sets[kind]) for kind in PREDICTED}
        if method is not None and method.stochastic:
            for kind in PREDICTED:
                drawn = predict_classes(reader, self.sets[kind], method, seed, self.budget.draws)
                found[f"{name}draws.{kind}"] = drawn
        return found

    def trained(self, method: str, seed: int) -> Run:
        """A method trained with a seed."""
        return self._kept(f"{method}-seed{seed}", lambda: self._train(method, seed))

    def _train(self, name: str, seed: int) -> Run:
        watched = self.sets["validation"] if name == "lora" else None  # for early stopping, a rival of its own
        found = train_adapter(
            name, self.load(), self.sets["train"], self.num_classes, self.budget, seed, watched, device=self.device
        )
        reader, method = found.reader, found.method
        tensors = self.predictions(reader, "", method, seed)
        state = trained_state(reader)
        tensors |= {f"state.{key}": value for key, value in state.items()}
        for step, by_module in found.scales:
            tensors |= {f"scales.{step}.{module}": value for module, value in by_module.items()}
        facts: dict[str, Any] = {"step_ms": found.step_ms, "ranks": method.ranks()}
        if found.best_state is not None:
            load_trained_state(reader, found.best_state)
            tensors |= self.predictions(reader, "early-", None, seed)
        if name in PRUNED:
            facts["sweep"] = self._sweep(reader, method, state)
            total = sum(facts["ranks"].values())
            for threshold in PRUNED_AT:  # the milder one first: what it leaves is pruned again
                if method.log_alpha():
                    prune_ranks(reader.network, threshold=threshold, allow_empty=True)
                left = sum(len(value) for value in method.log_alpha().values())
                facts[f"kept_at_{threshold:g}"] = left
                drawn = method if left and threshold == PRUNED_AT[-1] else None
                tensors |= self.predictions(reader, f"pruned{threshold:g}-", drawn, seed)
            facts["kept_tenth"] = min(left, total // TENTH)
            if left > total // TENTH > 0:
                prune_ranks(reader.network, budget=total // TENTH)
            tensors |= self.predictions(reader, "tenth-", None, seed)
        return Run(tensors, facts)

    def _sweep(self, reader: AdaptedReader, method: PlainLora, state: dict[str, Tensor]) -> list[list[float]]:
        """Threshold, total rank and test accuracy of the mean, by masking; the reader is left as it was."""
        log_alpha = method.log_alpha()
        rows = []
        for threshold in SWEEP:
            keep = {path: value < threshold for path, value in log_alpha.items()}
            mask_ranks(reader.network, keep)
            probs = average_draws(predict_classes(reader, self.sets["test"]))
            total = sum(int(value.sum()) for value in keep.values())
            rows.append([threshold, total, accuracy(probs, self.sets["test"].labels)])
            load_trained_state(reader, state)
        return rows

    def truncated(self, by: str, total_rank: int, seed: int, method: str = "lora") -> Run:
        """A method's adapter with its largest components only."""
        name = f"{method}-{by}-{total_rank}-seed{seed}"
        return self._kept(name, lambda: self._truncate(by, total_rank, seed, method))

    def _truncate(self, by: str, total_rank: int, seed: int, method: str) -> Run:
        reader = self._again(seed, method)
        ranks = truncate_ranks(reader.network, total_rank, by)
        return Run(self.predictions(reader, "", None, seed), {"ranks": ranks})

    def laplace(self, structure: str, seed: int) -> Run:
        """Laplace's approximation around the seed's LoRA, with a diagonal or Kronecker-factored curvature."""
        return self._kept(f"lora-laplace-{structure}-seed{seed}", lambda: self._approximate(structure, seed))

    def _approximate(self, structure: str, seed: int) -> Run:
        laplace = AdapterLaplace(self._again(seed), structure=structure).fit(self.sets["train"])
        facts = {"prior_precision": laplace.choose(self.sets["validation"], LAPLACE_DRAWS)}
        drawn = {f"draws.{kind}": laplace.predict(self.sets[kind], LAPLACE_DRAWS, seed) for kind in PREDICTED}
        return Run(drawn, facts)

    def training_free(self, seed: int) -> Run:
        """Noise around the seed's LoRA whose size is chosen on held-out texts."""
        return self._kept(f"lora-training-free-seed{seed}", lambda: self._loosen(seed))

    def _loosen(self, seed: int) -> Run:
        noisy = TrainingFree(self._again(seed))
        facts = {"scale": noisy.choose(self.sets["validation"])}
        drawn = {f"draws.{kind}": noisy.predict(self.sets[kind], self.budget.draws, seed) for kind in PREDICTED}
        return Run(drawn, facts)

    def _again(self, seed: int, method: str = "lora") -> AdaptedReader:
        """A point estimate as it was after training."""
        state = self.trained(method, seed).group("state")
        reader, _ = build_reader(
            method, self.load(), self.num_classes, len(self.sets["train"]), self.budget, seed, self.device
        )
        load_trained_state(reader, state)
        return reader.eval()

    def ensemble(self, seed: int, members: int = 3) -> dict[str, Tensor]:
        """Probabilities ``[members, n, C]`` of LoRA runs with successive seeds, shared between ensembles."""
        runs = [self.trained("lora", seed + i) for i in range(members)]
        return {kind: torch.cat([run.tensors[f"mean.{kind}"] for run in runs]) for kind in PREDICTED}
