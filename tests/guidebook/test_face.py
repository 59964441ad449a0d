"""``import guidebook as gb``: the day in one name, light, and loud where a room's name was taken."""

import subprocess
import sys
from pathlib import Path

import pytest

import guidebook as gb
from guidebook.listing import KINDS
from pp_models.registry import Registry

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pyro", "jax", "arviz", "transformers", "matplotlib", "pandas", "lightning_fabric")


def run(script, **options):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, **options)


def test_importing_the_face_loads_nothing_heavy():
    script = f"import guidebook, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(script, cwd=ROOT).stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_listing_a_kind_loads_nothing_heavy(kind):
    script = f"""
import sys
from guidebook.listing import KINDS
rows = KINDS[{kind!r}]()
print(len(rows) >= 11 and all(what for _, what in rows), [m for m in {HEAVY!r} if m in sys.modules])
"""
    assert run(script, cwd=ROOT).stdout.strip() == "True []"


@pytest.mark.parametrize("name", gb.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gb, name) is not None and name in dir(gb)


def test_names_are_the_rooms_own():
    import evaluation
    import guides
    import inference
    import pp_models

    assert gb.guides is guides and gb.tasks is pp_models.tasks and gb.objectives is inference.objectives
    assert gb.fit is inference.fit and gb.predict is inference.predict and gb.nuts is inference.nuts
    assert gb.verdict is evaluation.verdict and gb.plots is evaluation.plots and gb.compare is evaluation.compare
    with pytest.raises(AttributeError, match=r"^module 'guidebook' has no attribute 'fitt'$"):
        _ = gb.fitt


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    script = """
from inference.fit import FitResult
from inference.predict import predict as found
import inference
print(callable(inference.fit), inference.predict is found)
"""
    assert run(script, cwd=ROOT).stdout.strip() == "True True"


def test_another_package_of_a_room_s_name_is_named_in_one_line(tmp_path):
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "__init__.py").write_text("")
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nimport guidebook"
    message = run(script, cwd=tmp_path).stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: guidebook: inference is {tmp_path / 'inference'}, another package of that")


def test_the_tables_cover_what_their_sources_know():
    from pp_models.tasks.gp_kernels import KERNELS
    from pp_models.tasks.image_data import LOADERS
    from pp_models.tasks.regression_tables import TABLES
    from pp_models.tasks.task_table import TASKS

    known = {*(f"gp-{k}" for k in KERNELS), *LOADERS, *TABLES, *(f"{t}-clusters" for t in TABLES)}
    assert known <= set(TASKS)
    assert {name for name, entry in TASKS.items() if entry.beta == 0.5} == set(LOADERS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvdb", "model: got 'nvdb'; did you mean 'nvdp'?"),
        ("nv", "model: got 'nv'; did you mean 'nvdp' or 'nvdp+det'?"),
        ("gan", "model: got 'gan'; it must be one of nvdp, nvdp+det, cnp"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(name, message):
    with pytest.raises(ValueError) as caught:
        Registry("model", dict.fromkeys(("nvdp", "nvdp+det", "cnp"))).find(name)
    assert str(caught.value) == message
