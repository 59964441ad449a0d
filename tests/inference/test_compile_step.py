"""What graphs of a training step depend on, where none can be made, and what a fit makes of them."""

import logging

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from evaluation.methods import TaskShape, build
from guides import BernoulliExpertGuide, NeuralProcessGuide
from inference import compile_step, fit, step_backend
from inference.checkpoint import load
from inference.compile_step import CannotCompile, CompiledStep, check_traceable
from inference.objectives import make
from inference.training_step import TrainingStep
from pp_models import BayesianNetwork, ConvNeuralProcess, NeuralProcess, tasks
from pp_models.data import DataError, Dataset, TaskBatch
from tests.inference.compiled_grid import differences, eager, no_eager, pair_step


def nvdp(objective="conditional-prior", **options):
    torch.manual_seed(0)
    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    return TrainingStep(model, BernoulliExpertGuide(model, 8), make(objective, **options)).double().train()


def cnp():
    model = NeuralProcess(1, 1, width=8, latent_dim=0, representation_dim=8)
    return model, NeuralProcessGuide(model, 8)


def batch_of(context, target, seed=0, tasks_=2, masked=False):
    generator = torch.Generator().manual_seed(seed)

    def part(count):
        x, y = torch.randn(2, tasks_, count, 1, generator=generator, dtype=torch.float64)
        return Dataset(x, y, torch.rand(tasks_, count, generator=generator) < 0.9 if masked else None)

    return TaskBatch(part(context), part(target))


def test_one_graph_serves_any_number_of_points():
    step = nvdp()
    compiled = CompiledStep(step, no_eager, "graph")
    for context, target in ((50, 50), (43, 50), (60, 17), (20, 50), (70, 70)):
        assert differences(step, compiled, batch_of(context, target)) == []
    assert compiled.count == 1


def test_a_size_that_the_step_takes_for_a_number_is_part_of_the_guard():
    """Self-attention over the context asks for its number of points; that of the targets stays a symbol."""
    torch.manual_seed(0)
    method = build("nmdp", TaskShape(1, 1, 8, recipe="paper"))
    step = TrainingStep(method.model, method.guide, method.objective).double().train()
    compiled = CompiledStep(step, no_eager, "graph")
    for context, target in ((9, 7), (5, 12), (9, 4)):
        assert differences(step, compiled, batch_of(context, target)) == []
    assert compiled.count == 2 and compiled.dynamic


def test_sizes_on_which_the_step_branches_get_a_graph_of_their_own():
    step = nvdp()
    compiled = CompiledStep(step, no_eager, "graph")
    for context, target in ((50, 50), (3, 4), (1, 5), (0, 5), (45, 60)):
        assert differences(step, compiled, batch_of(context, target)) == []
    assert 3 <= compiled.count <= 5  # many points, few, one, none


def test_masks_options_and_what_is_trained_get_graphs_of_their_own():
    step = nvdp(beta=1.0)
    compiled = CompiledStep(step, no_eager, "graph", dynamic=False)
    batch = batch_of(5, 4)
    counts = []
    for change in (
        lambda: None,
        lambda: setattr(step.objective, "beta", 0.5),
        lambda: next(step.guide.parameters()).requires_grad_(False),
        lambda: setattr(step.guide, "clip", "probability"),
        lambda: step.eval(),
    ):
        change()
        assert differences(step, compiled, batch) == []
        counts.append(compiled.count)
    assert counts == [1, 2, 3, 4, 5]
    assert differences(step, compiled, batch_of(5, 4, masked=True)) == []
    assert compiled.count == 6


def test_frozen_parameters_and_buffers_are_inputs():
    step = pair_step("network", "mean-field", "tempered-elbo")
    step = TrainingStep(step.model, step.guide, make("tempered-elbo", warmup_steps=5)).double().train()
    frozen = next(step.guide.parameters()).requires_grad_(False)
    compiled = CompiledStep(step, no_eager, "graph", dynamic=False)
    for count in range(3):  # β grows by a count that the step keeps in a buffer
        assert differences(step, compiled, batch_of(4, 5)) == []
        assert float(step.objective.module.losses) == count + 1
        with torch.no_grad():
            frozen.mul_(1.5)
    assert compiled.count == 1


def test_gradients_have_memory_of_their_own():
    step = nvdp()
    CompiledStep(step, no_eager, "graph")(batch_of(5, 4))
    held = [p.grad for p in step.parameters() if p.grad is not None]
    assert len({g.untyped_storage().data_ptr() for g in held}) == len(held)
    assert all(p.grad.stride() == p.stride() for p in step.parameters() if p.grad is not None)


def test_beyond_the_most_graphs_steps_run_eagerly_and_say_so_once(monkeypatch, caplog):
    monkeypatch.setattr(compile_step, "MOST_GRAPHS", 1)
    step, calls = nvdp(), []
    compiled = CompiledStep(step, lambda batch: calls.append(batch) or (0, 0), "graph", dynamic=False)
    with caplog.at_level(logging.WARNING, "guidebook"):
        for context in (3, 4, 5, 4, 3):
            compiled(batch_of(context, 4))
    assert compiled.count == 1 and len(calls) == 3
    assert [r.message for r in caplog.records] == [
        "compile: runs eagerly, for there are 1 graphs already, and this batch needs another"
    ]


def test_a_step_that_reads_the_host_runs_eagerly_and_says_why(caplog):
    class Reading(BernoulliExpertGuide):
        def forward(self, data):
            if float(data.x.sum()) > 0:
                pass
            return super().forward(data)

    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    step = TrainingStep(model, Reading(model, 8), make("elbo")).double().train()
    batch = batch_of(5, 4)
    expected = eager(step, batch)[0]
    compiled = CompiledStep(step, lambda batch: eager(step, batch)[:2], "graph")
    with caplog.at_level(logging.WARNING, "guidebook"):
        torch.manual_seed(5)
        assert compiled(batch)[0] == expected
    assert [r.message.startswith("compile: runs eagerly, for ") for r in caplog.records] == [True]


def test_a_tensor_from_outside_is_not_kept_as_it_was():
    class Scaled(BernoulliExpertGuide):
        def __init__(self, model):
            super().__init__(model, 8)
            self.held = [torch.ones((), dtype=torch.float64)]

        def forward(self, data):
            return super().forward(Dataset.unchecked(data.x * self.held[0], data.y, data.mask))

    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    step = TrainingStep(model, Scaled(model), make("elbo")).double().train()
    compiled = CompiledStep(step, lambda batch: (0, 0), "graph")
    compiled(batch_of(5, 4))
    assert compiled.count == 0 and len(compiled.failed) == 1


def not_ours(data):
    return pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))


class Foreign(torch.nn.Module):
    forward = staticmethod(not_ours)


@pytest.mark.parametrize(
    "make_step, why",
    [
        (lambda: TrainingStep(*cnp(), Trace_ELBO()), "Trace_ELBO is not an objective of the library's"),
        (lambda: TrainingStep(Foreign(), cnp()[1], make("elbo")), "the model, Foreign, is not of the library's kind"),
        (lambda: TrainingStep(*cnp(), make("iw-em", inner_steps=3)), "inner_steps = 3: an E-step is kept"),
    ],
)
def test_what_a_graph_cannot_stand_for(make_step, why):
    with pytest.raises(CannotCompile, match=f"^{why}"):
        check_traceable(make_step())


def test_a_hook_is_not_run_once_alone():
    step = nvdp()
    step.guide.register_forward_hook(lambda *_: None)
    with pytest.raises(CannotCompile, match=r"^guide has a hook"):
        check_traceable(step)


def test_a_graph_refuses_data_as_the_step_does():
    model = ConvNeuralProcess(1, 1, width=4, extent=2.0, levels=1)
    from guides import ContextPointsGuide

    step = TrainingStep(model, ContextPointsGuide(model), make("npml")).double().train()
    compiled = CompiledStep(step, no_eager, "graph", dynamic=False)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 8, 1)
    compiled(Dataset(x, x).split(4))
    with pytest.raises(DataError, match=r"^x: a task's inputs stretch over 4; this model was built for 2$"):
        compiled(Dataset(2 * x, x).split(4))


def chosen(monkeypatch, tmp_path, steps, compile="auto", begun_with=None, compiler=True):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step_backend, "has_compiler", lambda device: compiler)
    return step_backend.choose(compile, steps, nvdp(), torch.device("cpu"), "32-true", begun_with)


def test_auto_compiles_long_runs_and_those_of_a_warm_cache(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, "guidebook")
    assert chosen(monkeypatch, tmp_path, 19_999) == "eager" and not caplog.records
    assert chosen(monkeypatch, tmp_path, 20_000, compiler=False) == "eager"
    assert chosen(monkeypatch, tmp_path, 20_000) == "inductor"
    assert "long enough to pay" in caplog.records[-1].message
    step_backend.mark(step_backend.marker(nvdp(), torch.device("cpu"), "32-true"))
    assert chosen(monkeypatch, tmp_path, 999) == "eager"
    assert chosen(monkeypatch, tmp_path, 1_000) == "inductor"
    assert "the compiler's cache is warm" in caplog.records[-1].message


def test_a_resumed_run_goes_on_as_it_was_begun(monkeypatch, tmp_path, caplog):
    assert chosen(monkeypatch, tmp_path, 10, begun_with="inductor") == "inductor"
    assert chosen(monkeypatch, tmp_path, 10**6, begun_with="eager") == "eager"
    assert not caplog.records
    assert chosen(monkeypatch, tmp_path, 10, compile=False, begun_with="inductor") == "eager"
    assert caplog.records[-1].message.startswith("compile: the run was begun inductor and goes on eager")


def test_what_cannot_be_compiled_is_fitted_eagerly_with_one_line(caplog):
    model, guide = cnp()
    result = fit(model, guide, tasks.gp("rbf", 2), Trace_ELBO(), steps=2, compile=True, progress=False)
    assert result.backend == "eager"
    assert [r.message for r in caplog.records if "compile" in r.message] == [
        "compile: runs eagerly, for Trace_ELBO is not an objective of the library's"
    ]


def test_a_compiled_fit_is_the_eager_one_but_for_rounding_and_is_resumed_compiled(tmp_path, compiling):
    """Inductor itself, on the smallest pair: its kernels take seconds each to compile."""

    def run(compile, folder, steps=6, **options):
        torch.manual_seed(0)
        model, guide = cnp()
        stream = tasks.gp("rbf", 2, num_context=(5, 9), num_target=(5, 9), max_points=None)
        result = fit(model, guide, stream, "npml", steps=steps, compile=compile, log_every=1, progress=False,
                     precision="64-true", checkpoint_dir=folder, **options)  # fmt: skip
        return result, [p.detach() for p in (*model.parameters(), *guide.parameters())]

    eager_fit, expected = run(False, tmp_path / "eager")
    compiled_fit, found = run(True, tmp_path / "compiled", steps=4)
    assert load(tmp_path / "compiled")[2]["backend"] == compiled_fit.backend == "inductor"
    compiled_fit, found = run("auto", tmp_path / "compiled", resume=True)
    assert compiled_fit.backend == "inductor" and eager_fit.backend == "eager"
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(compiled_fit.history, eager_fit.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-8)
