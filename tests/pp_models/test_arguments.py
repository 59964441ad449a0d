"""The rules for arguments: what each takes, and the one line that it refuses the rest by."""

import numpy as np
import pytest
import torch

import guidebook as gb
from pp_models.arguments import (
    FLAG,
    POSITIVE,
    SEED,
    check_weights,
    checked,
    each,
    instance,
    integer,
    interval,
    named,
    number,
    one_of,
    optional,
    tensor,
)

nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_of_every_make_become_pythons(value):
    found = integer(1, 5).check("steps", value)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_every_make_become_pythons(value):
    found = POSITIVE.check("rate", value)
    assert found == 0.5 and type(found) is float


@pytest.mark.parametrize(
    ("rule", "value", "line"),
    [
        (integer(1), 0, "a: got 0; it must be at least 1"),
        (integer(1, 8), 10**9, "a: got 1000000000; it must be at most 8"),
        (integer(1), True, "a: got True; it must be an integer, at least 1"),
        (integer(1), np.bool_(True), "an integer"),
        (integer(1), torch.tensor(True), "an integer"),
        (integer(1), 2.0, "a: got 2.0; it must be an integer, at least 1"),
        (integer(1), "3", "a: got '3'; it must be an integer, at least 1"),
        (integer(), np.array([3]), "a: got a ndarray of shape [1] and dtype int64; it must be an integer"),
        (SEED, -1, "a: got -1; it must be at least 0"),
        (POSITIVE, 0, "a: got 0; it must be positive and finite"),
        (POSITIVE, nan, "a: got nan; it must be positive and finite"),
        (POSITIVE, inf, "a: got inf; it must be positive and finite"),
        (POSITIVE, 10**400, "it must be positive and finite"),
        (POSITIVE, 1e300, "a: got 1e+300; it must be at most 1e+30 in size"),
        (POSITIVE, "1", "a: got '1'; it must be a number that is positive and finite"),
        (POSITIVE, True, "a number"),
        (number(0, 1, "()"), "1", "a: got '1'; it must be a number that lies in (0, 1)"),
        (number(0, 1, "(]", why=", a share"), 0.0, "a: got 0.0; it must lie in (0, 1], a share"),
        (named("gap", other=POSITIVE), -1, "a: got -1; it must be 'gap', or be positive and finite"),
        (named("gap", other=integer(1)), 0.5, "a: got 0.5; it must be 'gap' or an integer, at least 1"),
        (number(0, 1, "(]"), 0.0, "a: got 0.0; it must lie in (0, 1]"),
        (number(0, 1, "[)"), 1.0, "a: got 1.0; it must lie in [0, 1)"),
        (number(0), -0.1, "a: got -0.1; it must be finite and not negative"),
        (number(2, ends="()"), 2, "a: got 2; it must be finite and above 2"),
        (FLAG, "no", "a: got 'no'; it must be True or False"),
        (FLAG, 1, "a: got 1; it must be True or False"),
        (one_of("x", "y"), "z", "a: got 'z'; it must be 'x' or 'y'"),
        (one_of("x", "y"), ["x"], "a: got ['x']; it must be 'x' or 'y'"),
        (one_of("x", "y", "w"), None, "a: got None; it must be one of x, y, w"),
        (named("gap", other=POSITIVE), "gaps", "a: got 'gaps'; it must be 'gap' or a number that is positive and"),
        (optional(POSITIVE), -1, "a: got -1; it must be positive and finite, or None"),
        (each(integer(1), 2), "181", "a: got '181'; it must be a sequence"),
        (each(integer(1), 2), [1], "a: got [1]; it must have at least 2 members"),
        (each(integer(1)), [1, 0], "a: got [1, 0]; it must be a sequence, and each must be at least 1"),
        (interval(number()), (1, 0), "a: got (1, 0); it must be (low, high) with low < high"),
        (interval(number()), 3, "a: got 3; it must be (low, high) with low < high"),
        (interval(integer(1)), (0, 2), "it must be (low, high) with low < high, and each must be at least 1"),
        (instance(dict, list), 1, "a: got 1; it must be a dict or a list"),
        (tensor(2), torch.ones(3), "it must be a floating-point tensor of 2 dimensions"),
        (tensor(1), torch.tensor([nan]), "it must hold no NaN or infinity"),
    ],
)  # fmt: skip
def test_the_rest_is_refused_in_one_line(rule, value, line):
    with pytest.raises(ValueError) as error:
        rule.check("a", value)
    message = str(error.value)
    assert line in message and message.startswith("a: got ") and "\n" not in message and len(message) < 200


def test_infinity_where_it_has_a_meaning():
    assert number(0, 10, endless=True).check("a", inf) == inf
    with pytest.raises(ValueError, match=r"^a: got nan; it must lie in \[0, 10\]$"):
        number(0, 10, endless=True).check("a", nan)


def test_a_call_reads_kinds_off_its_annotations():
    @checked(steps=integer(1))
    def call(steps: "int", loud: "bool" = False, rate: "float | None" = None, *, name: "str" = "x", **rest: "int"):
        return steps, loud, rate, name, rest

    assert call(np.int64(2), rate=None, other="anything") == (2, False, None, "x", {"other": "anything"})
    for options, line in (
        ({"loud": "no"}, "^loud: got 'no'; it must be True or False$"),
        ({"rate": nan}, "^rate: got nan; it must be finite, or None$"),
        ({"name": 3}, "^name: got 3; it must be a string$"),
    ):
        with pytest.raises(ValueError, match=line):
            call(1, **options)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'steps'"):
        call()
    with pytest.raises(TypeError, match=r"call: it has no argument 'step'"):
        checked(step=integer())(call)


def test_a_network_too_large_to_be_meant_is_refused_before_memory_is_asked_for():
    check_weights("width", [2**15, 2**15])
    with pytest.raises(ValueError, match=r"^width: got a network of 4.3e\+09 weights; it must have at most 2.1e\+09"):
        check_weights("width", [2**16, 2**16])
    with pytest.raises(ValueError, match=r"^layer_sizes: got a network of 1e\+10 weights"):
        gb.BayesianNetwork([100_000, 100_000, 1])


def pair():
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    return model, gb.guides.AmortisedMeanFieldGuide(model, 4)


def fit(**options):
    return gb.fit(*pair(), [], **options)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: fit(max_grad_norm=-1), "max_grad_norm: got -1; it must be positive and finite, or None"),
        (lambda: fit(learning_rate=inf), "learning_rate: got inf; it must be positive and finite"),
        (lambda: fit(checkpoint_every=nan), "checkpoint_every: got nan; it must be an integer, at least 1"),
        (lambda: gb.objectives.IWAE(2.5), "num_particles: got 2.5; it must be an integer"),
        (lambda: gb.objectives.TaskELBO(normalize="no"), "normalize: got 'no'; it must be True or False, or None"),
        (lambda: gb.BayesianNetwork("181"), "layer_sizes: got '181'; it must hold at least two positive widths"),
        (lambda: gb.NeuralProcess(1, 1, depth=-1), "depth: got -1; it must be at least 1"),
        (lambda: gb.NeuralProcess(1, 1, width=True), "width: got True; it must be an integer, at least 1"),
        (lambda: gb.tasks.gp(batch_size=10**9), "batch_size: got 1000000000; it must be at most 1048576"),
        (lambda: gb.tasks.gp(seed=-1), "seed: got -1; it must be at least 0"),
        (lambda: gb.guides.BNNWeightGuide(pair()[0], 10**9), "width: got 1000000000; it must be at most 16384"),
    ],
)  # fmt: skip
def test_measured_cases(call, line):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == line
