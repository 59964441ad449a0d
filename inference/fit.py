"""Fitting: one loop for every model, guide and objective, on Lightning Fabric, resumable to the byte."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference import checkpoint
from inference.architecture import ARCHITECTURE, architecture_bytes
from inference.averaging import LastParameters, StandIns
from inference.best_parameters import BestParameters
from inference.data_dtype import parameter_dtype
from inference.held_out import HeldOutLoss, held_out_batches, out_of_patience
from inference.interruption import Interrupted, one_fit_at_a_time, until_asked
from inference.ivon import IVON, drawn_parameters, make_ivon
from inference.objectives import TaskObjective, make
from inference.optimizer_state import check_optimizer_state
from inference.plateau import settled
from inference.progress import FitProgress
from inference.random_state import seed_device
from inference.schedules import LearningRates
from inference.skipped_steps import SkippedSteps
from inference.step_backend import BACKENDS, EAGER, choose
from inference.step_gradients import StepGradients, of_all_tasks
from inference.training_setup import (
    batches,
    follow,
    make_fabric,
    make_optimizer,
    release_steps,
    scale_hint,
    skips_on_device,
    step_seed,
)
from inference.training_step import STATISTICS, TrainingStep
from pp_models.arguments import (
    CALLABLE,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    checked,
    each,
    either,
    instance,
    integer,
    named,
    number,
    one_of,
)
from pp_models.contract import as_objective
from pp_models.files import append_line, locked, make_folder
from pp_models.tasks.frame_files import DESCRIPTION, ROWS
from pp_models.tasks.task_stream import TaskStream


@dataclass
class FitResult:
    """What a fit leaves behind.

    Args:
        model: the trained model.
        guide: the trained guide.
        objective: the objective.
        steps: steps done, those of an earlier run that was resumed included.
        history: one dict per logged step: ``step``, ``loss``, ``log_likelihood`` (nats per scored value), ``kl``,
            ``ess`` and ``ess_below_2`` (mean effective sample size of the tasks' importance weights, and the share of
            tasks below 2; where the objective forms weights), ``grad_norm``, ``skipped`` (so far), and
            ``held_out_loss`` where there are tasks for validation, ``averaged`` (steps so far whose parameters the mean
            is of) with ``average``.
        skipped: ``(step, parameter)`` for every step that was skipped as not finite.
        seconds: wall time of this call.
        backend: ``"eager"``, or ``"inductor"`` for compiled steps.
        optimizer: the optimizer, with its state.
        best_step: the step whose parameters the model and the guide are at, with ``keep_best``; None for the last.
        averaged: steps whose parameters' mean the model and the guide are at; 0 where they are at the last ones.
    """

    model: nn.Module
    guide: nn.Module
    objective: Any
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    backend: str = EAGER
    averaged: int = 0
    best_step: int | None = None
    optimizer: Any = None


#: what trains a model that is a function
OF_FUNCTIONS = ". A function is trained by pyro.infer.SVI(model, guide, optimizer, loss=objective)"


@checked(
    model=instance(nn.Module, instead=OF_FUNCTIONS),
    guide=instance(nn.Module, instead=OF_FUNCTIONS),
    objective=either(str, other=instance(pyro.infer.ELBO)),
    steps=integer(1),
    seed=SEED,
    compile=one_of(True, False, "auto"),
    resume=one_of(True, False, "previous"),
    callbacks=each(CALLABLE, must="hold functions of the metrics"),
    learning_rate=POSITIVE,
    final_learning_rate=NOT_NEGATIVE,
    max_grad_norm=POSITIVE,
    warmup=NOT_NEGATIVE,
    stop=named("plateau", other=CALLABLE),
    log_every=integer(1),
    checkpoint_every=integer(1),
    checkpoint_dir=PATH,
    accumulate=integer(1),
    patience=integer(1),
    average=number(0, 1, "(]"),
)
def fit(
    model: nn.Module,
    guide: nn.Module,
    tasks: Any,
    objective: str | pyro.infer.ELBO = "elbo",
    steps: int = 1000,
    seed: int = 0,
    optimizer: Any = None,
    device: Any = "auto",
    precision: str = "32-true",
    compile: bool | str = "auto",
    checkpoint_dir: str | os.PathLike | None = None,
    resume: bool | str = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[dict[str, float]], Any]] = (),
    *,
    learning_rate: float = 1e-3,
    schedule: str | Callable[[torch.optim.Optimizer], Any] | None = None,
    warmup: float = 0.0,
    final_learning_rate: float | None = None,
    max_grad_norm: float | None = None,
    stop: str | Callable[[list[dict[str, float]]], bool] | None = None,
    release: Mapping[str, int] | None = None,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    accumulate: int = 1,
    validation: Any = None,
    patience: int | None = None,
    keep_best: bool = False,
    average: float | None = None,
) -> FitResult:
    """Trains a model and guide on a stream of tasks.

    A run depends on its arguments and ``seed`` alone, not on the process's random state, which is left as it was. With
    ``checkpoint_dir`` it can be killed at any moment: resumed, it ends with the bytes it would have had.

    A step whose loss or gradient is not finite is skipped (parameters and optimizer stay as they were), counted and
    logged with the parameter concerned; three in a row raise :class:`TrainingDiverged`.

    Args:
        model: a Pyro model of one Dataset, an ``nn.Module``.
        guide: its guide.
        tasks: a TaskStream, any iterable of TaskBatch or Dataset, or one TaskBatch or Dataset used at every step.
        objective: a name for ``inference.objectives.make``, or any ``pyro.infer.ELBO`` (one that is not ours is called
            on the whole task).
        steps: optimizer steps in all.
        seed: seed of every draw made while fitting.
        optimizer: None for Adam; ``"ivon"`` for :class:`inference.IVON`, which learns a Gaussian about the parameters
            (:func:`inference.ivon_guide`); a torch optimizer; a Pyro optimizer; or a function from parameters to one.
        device: where to train: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or a launched Lightning ``Fabric``
            (several processes). Afterwards model and guide are back where they were.
        precision: a Fabric precision, such as ``"32-true"``, ``"64-true"`` or ``"bf16-mixed"``.
        compile: ``True`` compiles the step: model, guide and objective become one graph, for any number of points
            (:mod:`inference.compile_step`); what cannot be compiled runs eagerly, and one line says why. ``"auto"``
            compiles a run of 20,000 steps or more, and one of 1,000 that this machine has compiled before, and says so;
            numbers agree with those of ``False`` but for rounding. A resumed run goes on as it was begun.
        checkpoint_dir: folder for checkpoints, ``metrics.jsonl``, and how the pair was built, so that
            ``guidebook.load(folder)`` opens it; None to write nothing.
        resume: continue from the folder's newest checkpoint if it has one; ``"previous"`` from the one before.
        progress: show a progress bar.
        callbacks: called with the metrics at every logged step; one that returns True ends the fit.
        learning_rate: of the default optimizer.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``: how learning rates fall until the last step; or a
            function from the optimizer to a scheduler of torch, stepped once a step. None is constant, or linear where
            ``final_learning_rate`` is given.
        warmup: linear growth of the learning rates at the start: a share of the steps below 1, else a number of steps.
        final_learning_rate: what every learning rate falls to; 0 by default with ``"linear"`` and ``"cosine"``.
        max_grad_norm: clip the gradient's norm to this.
        stop: ``"plateau"`` ends the fit once :func:`inference.settled` says so; or a function of the history that says
            so, asked at every logged step.
        release: by the beginning of parameter names, the step from which they are trained; before it they stay as they
            are. ``{"model.prior": 100}`` lets a guide settle before the prior moves.
        log_every: steps between logged metrics.
        checkpoint_every: steps between checkpoints.
        accumulate: batches of a step, whose gradients are taken one after the other: as one batch with all their tasks,
            in the memory of one.
        validation: held-out tasks, a TaskBatch, a Dataset or several (of a stream the first eight batches): their loss
            by the same draws stands in every logged row as ``held_out_loss``.
        patience: ends the fit once that has not fallen for so many logged rows.
        keep_best: model and guide end at the parameters of the logged step whose ``held_out_loss`` was lowest
            (``FitResult.best_step``), in place of the last ones. Checkpoints hold the best so far, and a run goes on
            from what it was; buffers are the last ones.
        average: a share of the steps: model and guide end at the mean of the parameters after each of the last ones
            (Polyak and Juditsky 1992), which noisy gradients leave nearer the optimum than the last step. Checkpoints
            hold the mean, ``held_out_loss`` is at it, and a run goes on from what it was. A fit that ends before they
            begin ends at its last parameters.

    Raises:
        ValueError: an argument out of range, or tasks that end early.
        CheckpointError: the folder cannot be written, or holds a run that is in the way, does not fit or is damaged.
        TrainingDiverged: three steps in a row were not finite.
        Interrupted: Ctrl-C or SIGTERM, with a ``checkpoint_dir``: the step was finished and a checkpoint written. A
            second signal does not wait for either.
    """
    if isinstance(objective, str):
        objective = make(objective)
    if accumulate > 1 and as_objective(objective).inner_steps > 1:
        raise ValueError(
            f"accumulate: got {accumulate} with inner_steps = {as_objective(objective).inner_steps}, which keeps the "
            "draws of one batch; take one of them"
        )
    if patience is not None and validation is None:
        raise ValueError(f"patience: got {patience} without validation; it needs held-out tasks to watch")
    if keep_best and validation is None:
        raise ValueError("keep_best: got True without validation; it needs held-out tasks to watch")
    if keep_best and average is not None:
        raise ValueError(f"keep_best: got True with average = {average}; take one of them")
    watched = [] if validation is None else held_out_batches(validation)
    fabric = make_fabric(device, precision)
    folder = None if checkpoint_dir is None else make_folder(checkpoint_dir, "checkpoint_dir")
    writes = folder is not None and fabric.global_rank == 0  # of several processes one
    described = tasks.description() if isinstance(tasks, TaskStream) else None
    with one_fit_at_a_time(), locked(folder, "checkpoint_dir") if folder is not None and writes else nullcontext():
        if folder is not None and writes and not resume:
            checkpoint.refuse_foreign_files(folder, "checkpoint_dir", (DESCRIPTION, ROWS) if described else ())
        elif folder is not None and writes:
            checkpoint.remove_leftovers(folder)

        step_module = TrainingStep(model, guide, objective)
        modules = {"model": model, "guide": guide}
        if step_module.carried is not None:
            modules["objective"] = step_module.carried
        parameters = [p for p in step_module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("model, guide: neither has a trainable parameter")
        names = [n for n, p in step_module.named_parameters() if p.requires_grad]
        released_at = release_steps(release, names)
        home = next(step_module.parameters()).device
        fabric.to_device(step_module)
        if isinstance(optimizer, str) and optimizer == "ivon":
            optimizer = partial(make_ivon, learning_rate=learning_rate, objective=objective)
        inner = make_optimizer(optimizer, parameters, learning_rate)
        if isinstance(inner, IVON) and fabric.world_size > 1:
            raise ValueError("optimizer: got IVON in several processes, which would draw apart; it must be one process")
        given = [{name: value for name, value in group.items() if name != "params"} for group in inner.param_groups]
        if home != fabric.device:
            follow(inner)
        if schedule is None:
            schedule = "constant" if final_learning_rate is None else "linear"
        rates = LearningRates(inner, schedule, steps, warmup, final_learning_rate)
        wrapped, fabric_optimizer = fabric.setup(step_module, inner)
        dtype = parameter_dtype(model, guide)
        last, best = LastParameters(parameters, average, steps), BestParameters(parameters, keep_best)
        ends: StandIns = best if keep_best else last

        result = FitResult(model, guide, objective, 0, optimizer=inner)
        done, begun_with = 0, None
        if folder is not None and resume and checkpoint.read_index(folder):
            which = 1 if resume == "previous" else 0
            done, tensors, state = checkpoint.load(folder, which, checkpoint.size_of(modules))
            if done > steps:
                raise ValueError(f"steps: got {steps}, but the run in {folder} is already at step {done}")
            if state["seed"] != seed:
                raise ValueError(f"seed: got {seed}, but the run in {folder} has seed {state['seed']}")
            if state["accumulate"] != accumulate:
                raise ValueError(
                    f"accumulate: got {accumulate}, but the run in {folder} has accumulate {state['accumulate']}"
                )
            if state["backend"] not in BACKENDS:
                raise checkpoint.CheckpointError(f"{folder}: was run by {state['backend']!r}, which is none of ours")
            begun_with = state["backend"]
            checkpoint.check_fits(modules, tensors)
            named = {id(p): name for name, p in zip(names, parameters, strict=True)}
            check_optimizer_state(state["optimizer"], inner, given, named, folder)
            rates.load_state_dict(state["schedule"])
            checkpoint.load_into(modules, tensors)
            last.load(state["average"], done, folder)
            best.load(state["best"], state["history"], folder)
            try:
                inner.load_state_dict(state["optimizer"])
            except (ValueError, KeyError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(f"optimizer: the run in {folder} was made with another one ({reason})") from None
            result.history = list(state["history"])
            result.skipped = [(int(step), str(name)) for step, name in state["skipped"]]
        if folder is not None and fabric.global_rank == 0:
            lines = "".join(json.dumps(row) + "\n" for row in result.history)
            checkpoint.write(folder, "metrics.jsonl", lines.encode())
            if described is not None:
                checkpoint.write(folder, DESCRIPTION, described)
            with suppress(ValueError):  # a pair of the user's own classes is built anew by their own code
                name = as_objective(objective).name or None
                checkpoint.write(folder, ARCHITECTURE, architecture_bytes(model, guide, name))

        def save(step: int, interim: bool = False) -> None:
            if folder is None or fabric.global_rank != 0:
                return
            with ends.in_place() as held:
                tensors = {f"{key}.{name}": t for key, part in modules.items() for name, t in part.state_dict().items()}
                state = {
                    "optimizer": inner.state_dict(),
                    "schedule": rates.state_dict(),
                    "history": result.history,
                    "skipped": [[s, n] for s, n in result.skipped],
                    "seed": seed,
                    "backend": result.backend,
                    "accumulate": accumulate,
                    "average": last.state_dict(held),
                    "best": best.state_dict(held),
                }
                checkpoint.save(folder, step, tensors, state, interim)

        shown = progress and fabric.global_rank == 0
        precision_used = fabric.strategy.precision.precision
        backend = choose(compile, steps - done, step_module, fabric.device, precision_used, begun_with, shown)
        result.backend = fabric.broadcast(backend)  # every process the same
        gradients = StepGradients(fabric, wrapped, step_module, result.backend)
        batch_at = batches(tasks, done * accumulate, fabric.global_rank, fabric.world_size)
        on_device = skips_on_device(inner, precision)
        skipped = SkippedSteps(names, result.skipped, folder)
        held_out = HeldOutLoss(step_module, watched, fabric.device, dtype, seed) if watched else None
        asked_to_stop: Any = settled if stop == "plateau" else stop

        def is_over() -> bool:
            if patience is not None and out_of_patience(result.history, patience):
                return True
            return callable(asked_to_stop) and bool(result.history) and bool(asked_to_stop(result.history))

        if is_over():  # a run that had stopped is resumed
            steps = done
        check_every = 1 if fabric.device.type == "cpu" else 10
        started = time.perf_counter()
        devices = [fabric.device] if fabric.device.type == "cuda" else []
        bar = FitProgress(steps, done, enabled=shown)
        # to check arguments of distributions would read the device at every step; what is not finite is caught below
        with (
            torch.random.fork_rng(devices=devices),
            pyro.validation_enabled(False),
            _in_training(step_module, inner, home),
            until_asked(folder is not None) as asked,
            bar,
        ):
            for step in range(done, steps):
                seed_device(step_seed(seed, step, fabric.global_rank), fabric.device)
                rates.before(step)
                group = [batch_at(step * accumulate + i).to(fabric.device, dtype) for i in range(accumulate)]
                with _repeated(objective) as repeats:
                    for _ in range(repeats):
                        fabric_optimizer.zero_grad()
                        with drawn_parameters(inner):
                            loss, statistics = gradients(group)
                        for p, start in zip(parameters, released_at, strict=True):
                            if step < start:
                                p.grad = None  # an optimizer leaves such parameters and their momentum alone
                        used = [(i, p.grad) for i, p in enumerate(parameters) if p.grad is not None]
                        norms = torch.stack(torch._foreach_norm([g for _, g in used]))
                        grad_norm = norms.norm()
                        bad = skipped.note(step, loss, norms, [i for i, _ in used])
                        if max_grad_norm is not None:
                            scale = (max_grad_norm / grad_norm.clamp_min(1e-12)).clamp_max(1.0)
                            torch._foreach_mul_([g for _, g in used], scale)
                        if on_device:
                            inner.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
                            fabric_optimizer.step()
                        elif not bool(bad):  # an optimizer that cannot skip by itself costs one host read a step
                            fabric_optimizer.step()
                rates.after()
                last.after(step)
                bar.stepped(step + 1)
                at_log = (step + 1) % log_every == 0 or step + 1 == steps
                at_save = (step + 1) % checkpoint_every == 0 or step + 1 == steps
                if (step + 1) % check_every == 0 or at_log or at_save:
                    skipped.report(partial(scale_hint, group[0]))
                result.steps = step + 1
                if at_log:
                    of_all = of_all_tasks(fabric, loss, statistics, gradients.summed)
                    row = _metrics(step + 1, *of_all, grad_norm, len(result.skipped))
                    if average is not None:
                        row["averaged"] = last.count
                    if held_out is not None:
                        with fabric.autocast(), last.in_place():
                            row |= held_out()
                    best.note(row)
                    result.history.append(row)
                    bar.update(step + 1, row)
                    if folder is not None and fabric.global_rank == 0:
                        append_line(folder / "metrics.jsonl", json.dumps(row))
                    answers = [callback(row) for callback in callbacks]
                    if any(answer is True for answer in answers) or is_over():
                        save(step + 1)
                        break
                if at_save:
                    save(step + 1)
                if asked.number is not None and folder is not None:
                    if not at_save:
                        skipped.report(partial(scale_hint, group[0]))
                        save(step + 1, interim=True)
                    raise Interrupted(step + 1, folder, asked.number)
            ends.put()
            result.averaged, result.best_step = last.count, best.step or None
        if not result.steps:
            result.steps = done
        result.seconds = time.perf_counter() - started
        return result


@contextmanager
def _repeated(objective: Any) -> Iterator[int]:
    """Optimizer updates that one batch gets: several for an objective that keeps its E-step meanwhile."""
    repeats = objective.inner_steps if isinstance(objective, TaskObjective) else 1
    if repeats == 1:
        yield 1
        return
    with objective.one_e_step():
        yield repeats


@contextmanager
def _in_training(step_module: nn.Module, optimizer: torch.optim.Optimizer, home: torch.device) -> Iterator[None]:
    """Training mode; however the block ends, afterwards evaluation mode, an optimizer that skips no further step, and
    modules on the device that they came from, where the user's data are."""
    step_module.train()
    try:
        yield
    finally:
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf
        step_module.eval()
        if next(step_module.parameters()).device != home:
            step_module.to(home)
            follow(optimizer)


def _metrics(step: int, loss: Tensor, statistics: Tensor, grad_norm: Tensor, skipped: int) -> dict:
    """One logged row; the only place where training numbers reach the host. Unknown values are left out."""
    numbers = torch.cat([t.detach().double().reshape(-1) for t in (loss, statistics, grad_norm)]).tolist()
    row: dict[str, float] = {"step": step}
    row |= {k: v for k, v in zip(("loss", *STATISTICS, "grad_norm"), numbers, strict=True) if v == v}
    return row | {"skipped": skipped}
