"""One interface over the Bayesian adapters of a model, whoever made them: draws, KL, predictions, temperature.

What is recognised: LRVD layers, BLoB's and Laplace's factors of this library, and of peft's own PVeRA, MonteCLoRA and
LoRA with dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guides.adapters import lrvd_layers
from guides.adapters.blob_layers import blob_factors, blob_kl
from guides.adapters.lora_laplace import fit_laplace, laplace_factors, laplace_scale
from guides.adapters.lrvd_layers import LrvdModule
from inference.adapters.temperature import best_temperature, keep_temperature, temperature_of
from inference.prediction import Prediction, stack_distributions
from inference.random_state import seeded
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import POSITIVE, SCALE, SEED, checked, instance, integer
from pp_models.likelihoods import CategoricalLikelihood, Likelihood, make_likelihood

NOTHING = "LRVD, BLoB, Laplace, PVeRA, MonteCLoRA or LoRA dropout"


@dataclass(frozen=True)
class AdapterKind:
    """How one kind of random layer is found, switched on, drawn anew, and what its KL is.

    Args:
        name: in messages and tables.
        find: the layers of a model.
        switch: turns a layer's noise on and gives what turns it off again.
        refresh: takes another draw of a layer, where it holds one.
        kl: of a layer, to its prior, in nats; None where it has none that is a function of parameters alone.
        without_kl: why.
    """

    name: str
    find: Callable[[nn.Module], list[Any]]
    switch: Callable[[Any], Callable[[], None]]
    refresh: Callable[[Any], None] = lambda layer: None
    kl: Callable[[Any], Tensor] | None = None
    without_kl: str = ""


def _set(layer: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(layer, name)
    setattr(layer, name, value)
    return lambda: setattr(layer, name, before)


def _having(table: str) -> Callable[[nn.Module], list[Any]]:
    return lambda model: [m for m in model.modules() if isinstance(getattr(m, table, None), nn.Module | dict)]


def _dropouts(model: nn.Module) -> list[Any]:
    """Dropouts of active LoRA adapters with a positive rate; LRVD has noise of its own."""
    found = []
    for layer in model.modules():
        table = getattr(layer, "lora_dropout", None)
        if isinstance(table, nn.ModuleDict) and not isinstance(layer, LrvdModule):
            active = getattr(layer, "active_adapters", list(table))
            found += [table[a] for a in active if a in table and getattr(table[a], "p", 0.0) > 0]
    return found


def _dropout_on(layer: Any) -> Callable[[], None]:
    was = layer.training
    layer.train()
    return lambda: layer.train(was)


def _pvera_on(layer: Any) -> Callable[[], None]:
    at, generators = dict(layer.sample_at_inference), dict(layer.pvera_generator)
    layer.sample_at_inference.update(dict.fromkeys(at, True))
    layer.pvera_generator.update(dict.fromkeys(generators))  # draws are of the seed that is asked for

    def off() -> None:
        layer.sample_at_inference.update(at)
        layer.pvera_generator.update(generators)

    return off


def _monteclora_on(layer: Any) -> Callable[[], None]:
    was, layer.training = layer.training, True  # of the layer alone: its dropout stays as it was

    def off() -> None:
        layer.training = was

    return off


def _monteclora_draw(layer: Any) -> None:
    for sampler in layer.lora_monteclora_sampler.values():
        sampler.sampler.index = sampler.sampler.buffer_size  # what lies in its buffer is of another seed


def _monteclora_kl(layer: Any) -> Tensor:
    total = torch.zeros(())
    for sampler in layer.lora_monteclora_sampler.values():
        was, sampler.training = sampler.training, True
        total = total + sampler.get_variational_loss()[0] / sampler.kl_loss_weight
        sampler.training = was
    return total


def _laplace_on(layer: Any) -> Callable[[], None]:
    layer.laplace_mean = layer.weight.detach().clone()

    def off() -> None:
        with torch.no_grad():
            layer.weight.copy_(layer.laplace_mean)
        del layer.laplace_mean

    return off


def _laplace_draw(layer: Any) -> None:
    with torch.no_grad():
        scale = laplace_scale(layer)
        layer.weight.copy_(layer.laplace_mean + scale * torch.randn_like(scale))


#: besides LRVD, which draws by ``guides.sampling``
KINDS = (
    AdapterKind("blob", blob_factors, lambda layer: _set(layer, "blob_draws", True), kl=blob_kl),
    AdapterKind("laplace", laplace_factors, _laplace_on, _laplace_draw, without_kl="it was never trained by a bound"),
    AdapterKind(
        "pvera",
        _having("pvera_lambda_d"),
        _pvera_on,
        without_kl="its noise is of activations, and its KL of inputs",
    ),
    AdapterKind("monteclora", _having("lora_monteclora_sampler"), _monteclora_on, _monteclora_draw, _monteclora_kl),
    AdapterKind("lora-dropout", _dropouts, _dropout_on, without_kl="a rate that is given has nothing to be trained by"),
)


def adapter_kinds(model: nn.Module) -> dict[str, int]:
    """Which kinds of random layers a model has, and how many of each.

    Raises:
        TypeError: a LowRankAdapted, whose guide draws.
    """
    if isinstance(model, LowRankAdapted):
        raise TypeError("model: got a LowRankAdapted; its posterior is its guide's: gb.predict(model, guide, ...)")
    found = {"lrvd": sum(isinstance(m, LrvdModule) for m in model.modules())}
    found |= {kind.name: len(kind.find(model)) for kind in KINDS}
    return {name: number for name, number in found.items() if number}


def _check_random(model: nn.Module) -> dict[str, int]:
    kinds = adapter_kinds(model)
    if not kinds:
        raise ValueError(f"model: {type(model).__name__} has no random adapter; it must have {NOTHING}")
    return kinds


@checked(model=instance(nn.Module), num_samples=integer(1), seed=SEED)
@contextmanager
def sampling(model: nn.Module, num_samples: int = 1, seed: int | None = None) -> Iterator[Iterable[int]]:
    """Within it, calls of the model are posterior draws; after it they are what they were.

    Within a turn of the loop LRVD and Laplace hold one draw, so that several calls see the same function; BLoB, PVeRA,
    MonteCLoRA and dropout draw anew at each call (or example), as their authors' layers do.

    Args:
        model: with adapters of any kind named above; its own dropout is on or off as its mode says.
        num_samples: turns of ``for _ in draws``.
        seed: of these draws; the global random state is put back afterwards. None draws from the global one.

    Raises:
        ValueError: nothing in the model is random.
        TypeError: a LowRankAdapted.
    """
    kinds = _check_random(model)
    layers = [(kind, layer) for kind in KINDS for layer in kind.find(model)]
    with ExitStack() as stack:
        device = next(model.parameters()).device
        stack.enter_context(seeded(seed, device))
        draws: Any = range(num_samples)
        if "lrvd" in kinds:
            draws = stack.enter_context(lrvd_layers.sampling(model, num_samples))
        for kind, layer in layers:
            stack.callback(kind.switch(layer))

        def turns() -> Iterator[int]:
            for i in draws:
                for kind, layer in layers:
                    kind.refresh(layer)
                yield i

        for kind, layer in layers:
            kind.refresh(layer)
        yield _Turns(turns, num_samples)


class _Turns:
    """What ``for _ in draws`` goes through."""

    def __init__(self, turns: Callable[[], Iterator[int]], number: int) -> None:
        self._turns, self._number = turns, number

    def __iter__(self) -> Iterator[int]:
        return self._turns()

    def __len__(self) -> int:
        return self._number


@checked(model=instance(nn.Module))
def kl(model: nn.Module) -> Tensor:
    """KL of all random adapters to their priors, in nats: add it, divided by the number of data, to a mean loss.

    LRVD's counts each rank once (``guides.kl_divergence`` has the other counts), BLoB's each weight, MonteCLoRA's is
    its variational loss without its own weight.

    Raises:
        ValueError: nothing is random, or a kind without a KL that is a function of its parameters.
        TypeError: a LowRankAdapted.
    """
    kinds = _check_random(model)
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for kind in KINDS:
        if kind.name in kinds:
            if kind.kl is None:
                raise ValueError(f"model: its adapters are of kind {kind.name!r}, which has no KL: {kind.without_kl}")
            for layer in kind.find(model):
                total = total + kind.kl(layer).to(device)
    return total + lrvd_layers.kl_divergence(model) if "lrvd" in kinds else total


def _split(batch: Any) -> tuple[Any, Tensor | None]:
    """Inputs and labels of a loader's batch."""
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "label")}
        return inputs, batch.get("labels", batch.get("label"))
    if isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise ValueError(f"loader: got a batch of {len(batch)} parts; it must give inputs, or inputs and labels")
        return batch[0], batch[1] if len(batch) == 2 else None
    return batch, None


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    device = next(model.parameters()).device
    if isinstance(inputs, Mapping):
        found = model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()})
    else:
        found = model(inputs.to(device))
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor) or found.dim() != 2:
        got = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"model: it gives outputs of {got}; they must be [n, K], such as a sequence classifier's logits"
        )
    return found.float()


def _batches(loader: Any) -> list[Any]:
    """All batches, for a pass a draw sees them again."""
    found = [loader] if isinstance(loader, Tensor | Mapping) else list(loader)
    if not found:
        raise ValueError("loader: got no batch; it must give at least one")
    return found


@torch.no_grad()
@checked(model=instance(nn.Module), draws=integer(0), seed=SEED, noise_scale=SCALE)
def predict(
    model: nn.Module,
    loader: Any,
    draws: int = 0,
    *,
    seed: int | None = 0,
    temperature: float | None = None,
    likelihood: str | Likelihood = "categorical",
    noise_scale: float = 0.1,
) -> Prediction:
    """Predicts every example of a loader, by the posterior mean or by draws.

    Args:
        model: with adapters of any kind; put into evaluation mode for the time of the call.
        loader: batches: mappings of what the model is called with (labels in them are left out), pairs of inputs and
            labels, or inputs; in the order of which predictions come. Or one such batch.
        draws: S; 0 for the posterior mean, which with a fitted temperature predicts as well as draws do on the texts of
            ``docs/results/lrvd.md`` and costs one pass. Draws say what is uncertain about the function.
        seed: of the draws.
        temperature: divides the logits; None for the one that :func:`calibrate` fitted, which is of the mean.
        likelihood: of the outputs ``[n, K]``.
        noise_scale: of the Gaussian likelihood.

    Returns:
        a :class:`inference.Prediction` of ``[n]`` examples: ``.mean`` are class probabilities.

    Raises:
        ValueError: no batch, outputs of another shape, or draws of a model in which nothing is random.
    """
    head = make_likelihood(likelihood, noise_scale)
    divisor = temperature_of(model) if temperature is None else POSITIVE.check("temperature", temperature)
    if not isinstance(head, CategoricalLikelihood):
        divisor = 1.0
    inputs = [_split(batch)[0] for batch in _batches(loader)]
    training = model.training
    model.eval()
    try:
        if draws == 0:
            passes = [torch.cat([_outputs(model, x) for x in inputs])]
        else:
            with sampling(model, draws, seed) as turns:
                passes = [torch.cat([_outputs(model, x) for x in inputs]) for _ in turns]
    finally:
        model.train(training)
    outputs = torch.stack(passes) / divisor
    found = head(outputs)
    with seeded(seed, outputs.device):
        return Prediction(stack_distributions([found], outputs.shape[:2]), found.sample())


@torch.no_grad()
@checked(model=instance(nn.Module))
def calibrate(model: nn.Module, held_out: Any) -> float:
    """Fits the temperature of the posterior mean's logits on held-out examples, and keeps it with the adapter.

    One pass over them. :func:`predict` divides by it from then on; an LRVD adapter's ``save_pretrained`` writes it.

    Args:
        model: a classifier.
        held_out: batches with labels that were not trained on; labels of -100 are left out.

    Returns:
        T; above 1 where the model was too sure.

    Raises:
        ValueError: no labels.
    """
    logits, labels = [], []
    training = model.training
    model.eval()
    try:
        for batch in _batches(held_out):
            inputs, label = _split(batch)
            if label is None:
                raise ValueError("held_out: got a batch without labels; a temperature is fitted to them")
            logits.append(_outputs(model, inputs).double().cpu())
            labels.append(torch.as_tensor(label).long().cpu())
    finally:
        model.train(training)
    rows, found = torch.cat(logits), torch.cat(labels)
    keep = found != -100
    if not bool(keep.any()):
        raise ValueError("held_out: got no label; a temperature is fitted to at least one")
    low, high = int(found[keep].min()), int(found[keep].max())
    if low < 0 or high >= rows.shape[-1]:
        raise ValueError(
            f"held_out: got labels from {low} to {high}; with {rows.shape[-1]} classes they lie below that"
        )
    temperature = best_temperature(rows[keep], found[keep])
    keep_temperature(model, temperature)
    return temperature


@checked(model=instance(nn.Module), prior_precision=POSITIVE)
def laplace(
    model: nn.Module,
    loader: Any,
    prior_precision: float = 1.0,
    *,
    likelihood: str | Likelihood = "categorical",
    adapter: str = "default",
) -> None:
    """Puts Laplace's diagonal Gaussian around the factors of a trained LoRA; :func:`sampling` draws from it.

    Each weight of A and B is N(trained value, 1 / (prior precision + curvature)), with the diagonal of the
    Gauss-Newton matrix summed over the examples. It is not saved with the adapter.

    Args:
        model: with LoRA layers of peft's, trained.
        loader: the training examples, as :func:`predict` takes them; labels are not looked at where the likelihood's
            curvature is known.
        prior_precision: of the Gaussian prior on factors; choose it on held-out data.
        likelihood: of the outputs.
        adapter: its name.

    Raises:
        ValueError: no LoRA layer, or a network in which examples share a factor's inputs.
    """
    head = make_likelihood(likelihood, 0.1)
    training = model.training
    model.eval()
    try:
        inputs = [_split(batch)[0] for batch in _batches(loader)]
        fit_laplace(model, inputs, lambda x: _outputs(model, x), head, prior_precision, adapter)
    finally:
        model.train(training)
