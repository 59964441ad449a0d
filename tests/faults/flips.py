"""Single flipped bits over every file of a run: found in one line that names a file, or harmless.

Harmless means that what is opened is the same to the bit. Files that nothing reads back (metrics, tables, pages) are
among them: a flip there must change nothing of what is opened.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evaluation.comparison.swap_matrix import compare
from evaluation.run_configuration import RunConfiguration
from guidebook.runs import open_run, start
from guides import AmortisedMeanFieldGuide
from inference import fit
from pp_models import BayesianNetwork, GivenGaussianPrior, LearnedGaussianPrior, tasks
from pp_models.files import FileError

#: what a reader may raise: one line
ERRORS = (FileError, ValueError)


@dataclass
class Flips:
    """What came of the flips in one kind of folder.

    Args:
        found: flips that were refused, by file.
        harmless: flips after which everything was the same, by file.
        wrong: a line for every flip that was neither.
    """

    found: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def digest(tensors: Mapping[str, torch.Tensor], *rest: object) -> str:
    """One word for all of a state."""
    known = hashlib.sha256(repr(rest).encode())
    for name in sorted(tensors):
        known.update(
            name.encode() + tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return known.hexdigest()


def flip_everywhere(folder: Path, opened: Callable[[Path], str], count: int, seed: int, scratch: Path) -> Flips:
    """Flips one bit at a time at random places of the folder's files, each file as often as the others.

    Args:
        folder: a run that is not touched.
        opened: opens a copy of it and says what was found.
        count: flips.
        seed: of the places.
        scratch: where copies go.
    """
    expected = opened(_copy(folder, scratch))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    chance, result = random.Random(seed), Flips()
    for number in range(count):
        name = files[number % len(files)]
        copy = _copy(folder, scratch)
        content = bytearray((copy / name).read_bytes())
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        content[place] ^= 1 << bit
        (copy / name).write_bytes(content)
        where = f"{name}, byte {place}, bit {bit}"
        try:
            got = opened(copy)
        except ERRORS as error:
            if "\n" in str(error) or str(copy) not in str(error):
                result.wrong.append(f"{where}: {type(error).__name__}: {error}")
            else:
                result.found[str(name)] += 1
        except Exception as error:
            result.wrong.append(f"{where}: {type(error).__name__}: {error}")
        else:
            if got == expected:
                result.harmless[str(name)] += 1
            else:
                result.wrong.append(f"{where}: opened as something else")
    return result


def _copy(folder: Path, scratch: Path) -> Path:
    target = scratch / "copy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


def pair() -> tuple[BayesianNetwork, AmortisedMeanFieldGuide]:
    """A small model and guide, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
        return model, AmortisedMeanFieldGuide(model, width=8)


def train(folder: Path, steps: int = 12, resume: bool = False) -> str:
    """A fit into a folder; what it ends with, in a word."""
    model, guide = pair()
    stream = tasks.gp(batch_size=2, seed=1)
    result = fit(
        model, guide, stream, "elbo", steps, 3, device="cpu", checkpoint_dir=folder, resume=resume, progress=False,
        checkpoint_every=4, log_every=2,
    )  # fmt: skip
    return digest({**model.state_dict(), **guide.state_dict()}, result.history, result.steps)


def make_fit(folder: Path) -> Callable[[Path], str]:
    """A fit's own folder; opened by going on."""
    train(folder)
    return lambda copy: train(copy, 14, resume=True)


def make_run(folder: Path) -> Callable[[Path], str]:
    """The command line's folder; opened as ``guidebook inspect`` does."""
    start(RunConfiguration("cnp", "gp-rbf", steps=4, width=8, batch_size=2), folder, progress=False, device="cpu")

    def opened(copy: Path) -> str:
        configuration, method, step = open_run(copy)
        return digest({**method.model.state_dict(), **method.guide.state_dict()}, configuration, step)

    return opened


def make_grid(folder: Path) -> Callable[[Path], str]:
    """A swap matrix; opened by asking for it again, when every cell is there."""

    def opened(copy: Path) -> str:
        table = compare(
            "network", ["mean-field"], ["elbo"], "gp-rbf", [0], steps=2, width=8, batch_size=2, test_tasks=8, draws=2,
            snr_particles=(), num_simulations=0, out=copy, progress=False,
        )  # fmt: skip
        return repr(table.to_dict("records"))

    opened(folder)
    return opened


def make_prior(folder: Path) -> Callable[[Path], str]:
    """A saved prior."""
    folder.mkdir()
    prior = LearnedGaussianPrior("unit")
    prior.build([(4, 2), (2, 5)])
    prior.as_given().save(folder / "prior.safetensors")

    def opened(copy: Path) -> str:
        given = GivenGaussianPrior.load(copy / "prior.safetensors")
        return digest(given.state_dict(), given.granularity)

    return opened


def make_adapter(folder: Path) -> Callable[[Path], str]:
    """A saved LRVD adapter."""
    from peft import get_peft_model

    from guides.adapters.lrvd_peft import LrvdConfig
    from guides.adapters.lrvd_saving import lrvd_load

    def base() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))

    get_peft_model(base(), LrvdConfig(r=2, target_modules=["0", "2"])).save_pretrained(folder)  # type: ignore[arg-type]
    x = torch.linspace(-1, 1, 12).reshape(3, 4)

    def opened(copy: Path) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = lrvd_load(base(), copy)
        return digest({**model.state_dict(), "logits": model(x)})

    return opened


FOLDERS: dict[str, Callable[[Path], Callable[[Path], str]]] = {
    "fit": make_fit,
    "run": make_run,
    "grid": make_grid,
    "prior": make_prior,
    "adapter": make_adapter,
}
