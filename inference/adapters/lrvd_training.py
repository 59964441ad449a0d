"""Training a model with LRVD layers outside Pyro: the KL's weight, learning rates, and Hugging Face's Trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guides.adapters.lrvd_families import weights_per_rank
from guides.adapters.lrvd_layers import kl_divergence, layer_states
from inference.schedules import SCHEDULES, decay
from inference.skipped_steps import TrainingDiverged
from pp_models.adapters.tempering import Tempering
from pp_models.arguments import FLAG, NOT_NEGATIVE, POSITIVE, checked, instance, integer, one_of, optional

#: how far log α may travel in a training run, in nats: the sum of its learning rates over the steps
TRAVEL = 14.0


@dataclass(frozen=True)
class LrvdObjective(Tempering):
    """E_q[mean NLL] + β(t) T KL / N: how the KL is weighed against a mean loss outside Pyro.

    Args:
        num_data: N, number of training examples (of labels, where the loss is a mean over labels).
        kl_count, kl_weight, temperature: see :class:`Tempering`.
        warmup_steps: steps over which β grows linearly from 0 to 1. None leaves it to the Trainer: a fifth of its
            steps.
        approximate: see ``kl_divergence``.

    Raises:
        ValueError: an argument out of range, or no ``num_data``.
    """

    warmup_steps: int | None = None
    approximate: bool | None = None

    def __post_init__(self) -> None:
        if self.num_data is None:
            raise ValueError("num_data: got None; a mean loss needs the number of training examples")
        integer(1).check("num_data", self.num_data)  # before the parent's, which allows None
        object.__setattr__(self, "approximate", optional(FLAG).check("approximate", self.approximate))
        super().__post_init__()

    @property
    def weight(self) -> float:
        """What multiplies the summed KL in a mean loss after the warm-up."""
        assert self.num_data is not None
        return self.kappa() / self.num_data

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        """What a step adds to its mean loss: a scalar."""
        return self.beta(step) * self.weight * kl_divergence(model, self.kl_count, self.approximate)

    def effective_temperature(self, model: nn.Module) -> float:
        """κ: what a rank's KL is multiplied by against the *summed* log-likelihood, all factors together.

        Where weights are counted, the mean over ranks (LRVD's released GLUE runs: 4 to 600).
        """
        states = list(layer_states(model).values())
        ranks = sum(len(s.lora_A) for s in states)
        count = 1.0
        if self.kl_count == "weights" and ranks:
            count = sum(len(s.lora_A) * weights_per_rank(*s[:3]) for s in states) / ranks
        return self.kappa(count)


@checked(steps=integer(1), travel=POSITIVE, schedule=one_of(*SCHEDULES), warmup_steps=integer(0))
def log_alpha_learning_rate(
    steps: int, travel: float = TRAVEL, schedule: str = "linear", warmup_steps: int = 0
) -> float:
    """The peak learning rate of log α for a training of so many steps.

    Adam moves a parameter by at most its learning rate a step, so that the sum over steps bounds how far log α can get
    from where it starts; with a tenth of the weights' rate (as in the released code) it never reaches a threshold.

    Args:
        steps: optimizer steps.
        travel: sum of learning rates over them; 12 to 16 let ranks be pruned, 60 takes null ranks to their end.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"`` decay to 0, after the warm-up.
        warmup_steps: steps of linear growth of the learning rate at the beginning.

    Raises:
        ValueError: an argument out of range.
    """
    return travel / sum(_factor(t, steps, schedule, warmup_steps) for t in range(steps))


def _factor(step: int, steps: int, schedule: str, warmup_steps: int) -> float:
    """A learning rate relative to its peak, as transformers' schedules have it."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return decay(schedule, (step - warmup_steps) / max(steps - warmup_steps, 1))


def noise_parameters(model: nn.Module, guide: nn.Module | None = None) -> list[nn.Parameter]:
    """Trainable noise levels: those of the LRVD layers of a model, and those of a rank-wise guide."""
    found = [p for name, p in model.named_parameters() if "lora_lrvd_" in name and p.requires_grad]
    if guide is not None:
        found += [p for name, p in guide.named_parameters() if name.startswith("levels.")]
    return found


@checked(
    model=instance(nn.Module),
    learning_rate=POSITIVE,
    steps=integer(1),
    guide=instance(nn.Module),
    travel=POSITIVE,
    schedule=one_of(*SCHEDULES),
    warmup_steps=integer(0),
    weight_decay=NOT_NEGATIVE,
)
def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    steps: int,
    *,
    guide: nn.Module | None = None,
    travel: float = TRAVEL,
    schedule: str = "linear",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: weights at ``learning_rate``, noise levels at the rate that their travel needs.

    Args:
        model: a model with LRVD layers, or a ``LowRankAdapted``.
        learning_rate: of A, B and every other trainable parameter.
        steps: optimizer steps.
        guide: a guide whose parameters are trained too.
        travel: see :func:`log_alpha_learning_rate`.
        schedule: of the scheduler that will run, the same for both groups.
        warmup_steps: of that scheduler.
        weight_decay: of the first group; noise levels have none.
    """
    noise = noise_parameters(model, guide)
    theirs = {id(p) for p in noise}
    every = [*model.parameters(), *(guide.parameters() if guide is not None else ())]
    weights = [p for p in every if p.requires_grad and id(p) not in theirs]
    rate = log_alpha_learning_rate(steps, travel, schedule, warmup_steps)
    groups = [{"params": weights, "lr": learning_rate, "weight_decay": weight_decay}]
    return groups + ([{"params": noise, "lr": rate, "weight_decay": 0.0}] if noise else [])


class LrvdTrainerMixin:
    """Adds the KL to a Hugging Face Trainer: ``class MyTrainer(LrvdTrainerMixin, Trainer)``.

    It is made as any Trainer, with ``lrvd=LrvdObjective(num_data)`` beside the other arguments.

    The KL enters once an optimizer step, however many batches a step accumulates, whether the loss is a mean over
    labels of all of them (``num_items_in_batch``) or of each, and however many processes there are. Noise levels get a
    parameter group without decay, whose learning rate comes from the number of steps. Logs carry ``kl`` (nats),
    ``beta``, ``kappa`` and ``total_rank``.

    Args:
        lrvd: the weight of the KL.
        travel: see :func:`log_alpha_learning_rate`.

    Raises:
        TrainingDiverged: a loss or gradient was not finite.
    """

    def __init__(self, *args: Any, lrvd: LrvdObjective, travel: float = TRAVEL, **kwargs: Any) -> None:
        self.lrvd, self.travel = lrvd, travel
        self._bad: Tensor | None = None
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's training; checkpoints of other ranks may be opened in it."""
        from inference.adapters.lrvd_callback import LrvdCallback

        this: Any = self
        for callback in this.callback_handler.callbacks:
            if isinstance(callback, LrvdCallback):
                callback.in_lrvd_trainer = True
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The Trainer's, after the model was given the checkpoint's ranks (the optimizer is made later)."""
        this: Any = self
        _take_ranks(this.model if model is None else model, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """The same for the best checkpoint, at the end of training."""
        this: Any = self
        _take_ranks(this.model, this.state.best_model_checkpoint)
        super()._load_best_model()  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer with the noise levels in a group of their own."""
        this: Any = self
        fresh = this.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        noise = noise_parameters(this.model)
        if fresh and noise:
            theirs = {id(p) for p in noise}
            for group in this.optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in theirs]
            this.optimizer.add_param_group({"params": noise, "weight_decay": 0.0, "noise_levels": True})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's scheduler, after the noise levels' learning rate was set from the number of steps."""
        this: Any = self
        kind = str(getattr(this.args.lr_scheduler_type, "value", this.args.lr_scheduler_type))
        rate = log_alpha_learning_rate(
            num_training_steps,
            self.travel,
            kind if kind in SCHEDULES else "linear",
            this.args.get_warmup_steps(num_training_steps),
        )
        for group in (this.optimizer if optimizer is None else optimizer).param_groups:
            if group.get("noise_levels"):
                group["lr"] = rate
                group.pop("initial_lr", None)
        if self.lrvd.warmup_steps is None:
            self.lrvd = replace(self.lrvd, warmup_steps=num_training_steps // 5)
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The Trainer's loss, and in training this batch's share of the weighted KL."""
        this: Any = self
        found = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if not model.training:
            return found
        loss, outputs = found if return_outputs else (found, None)
        term = self.lrvd.penalty(model, this.state.global_step)
        # the Trainer divides a batch's loss by the number of batches only where it is a mean over that batch
        scaled = getattr(this, "loss_is_scaled_for_ga", None)
        if scaled is None:
            by_items = this.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_items or this.compute_loss_func is not None
        share = 1.0 / getattr(this, "current_gradient_accumulation_steps", 1) if scaled else 1.0
        loss = loss + share * term
        self._note(torch.isfinite(loss.detach()).all())
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's step; a gradient that is not finite is seen too, for its loss may be finite all the same."""
        found = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        this: Any = self
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and this.accelerator.scaler is None:  # a scaler of half precision meets infinities on purpose
            self._note(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())
        return found

    def _note(self, finite: Tensor) -> None:
        """Keeps on the device whether all was finite so far; read at once on the CPU, elsewhere every ten steps."""
        this: Any = self
        self._bad = ~finite if self._bad is None else self._bad | ~finite
        if finite.device.type == "cpu" or this.state.global_step % 10 == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Refuses to go on after a loss or gradient that was not finite.

        Raises:
            TrainingDiverged: there was one.
        """
        this: Any = self
        if self._bad is not None and bool(self._bad):
            raise TrainingDiverged(
                f"step {this.state.global_step}: loss or gradient not finite; try a smaller learning_rate, "
                "max_grad_norm=1.0, or a smaller travel of log alpha"
            )
        self._bad = None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with what LRVD has to say."""
        this: Any = self
        if "loss" in logs:
            self.check_finite()
            with torch.no_grad():
                model = this.model
                logs |= {
                    "kl": float(kl_divergence(model, self.lrvd.kl_count, self.lrvd.approximate)),
                    "beta": float(self.lrvd.beta(this.state.global_step)),
                    "kappa": self.lrvd.effective_temperature(model),
                    "total_rank": sum(len(s.lora_A) for s in layer_states(model).values()),
                }
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _take_ranks(model: nn.Module, checkpoint: str | Path) -> None:
    """Gives each LRVD adapter the ranks it has in a Trainer's checkpoint, where there is one."""
    from guides.adapters.lrvd_saving import WEIGHTS, take_ranks

    configurations: Any = getattr(model, "peft_config", None) or {}
    for name, config in configurations.items():
        folder = Path(checkpoint) if name == "default" else Path(checkpoint) / name
        if hasattr(config, "init_log_alpha") and (folder / WEIGHTS).is_file():
            take_ranks(model, folder, name)


def __getattr__(name: str) -> Any:
    """The callback needs transformers, which is imported when it is first asked for."""
    if name == "LrvdCallback":
        from inference.adapters.lrvd_callback import LrvdCallback

        return LrvdCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
