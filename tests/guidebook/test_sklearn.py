"""The estimators: scikit-learn's own checks, tasks by groups or by a column, pipelines and cross-validation."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import guidebook as gb
from guidebook.sklearn import TaskClassifier, TaskRegressor
from tests.sensor_table import sensor_table

TINY = {"method": "cnp", "steps": 3, "width": 8, "num_samples": 4}
#: checks that do not apply, and why
NOT_APPLICABLE = {"check_array_api_input": "needs SCIPY_ARRAY_API in the environment before SciPy is imported"}
CHECKS = [
    (estimator, check)
    for made in (TaskRegressor(**TINY), TaskClassifier(**TINY))
    for estimator, check in estimator_checks_generator(made)
    if check.func.__name__ not in NOT_APPLICABLE
]


def _id(value):
    return value.func.__name__ if hasattr(value, "func") else type(value).__name__


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator, check", CHECKS, ids=_id)
def test_scikit_learn_finds_nothing_amiss(estimator, check):
    check(estimator)


def tasks(num_tasks=30, points=8, seed=0):
    """y = a x with a slope for each task."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_tasks), points)
    x = rng.uniform(-1, 1, (num_tasks * points, 1))
    return x, 100 + 10 * rng.normal(size=num_tasks)[groups] * x[:, 0], groups


def test_a_task_is_predicted_by_its_own_rows_new_ones_by_what_is_added():
    x, y, groups = tasks()
    estimator = TaskRegressor("cnp", steps=400, width=32, num_samples=4).fit(x, y, groups=groups)
    assert estimator.n_iter_ == 400 and isinstance(estimator.model_, nn.Module)
    assert estimator.score(x, y, groups=groups) > 0.5
    new_x, new_y, new_groups = tasks(6, seed=1)
    new_groups = new_groups + 1000
    without = estimator.score(new_x, new_y, groups=new_groups)
    spread = estimator.predict_std(new_x, new_groups).mean()
    first = np.arange(len(new_x)) % 8 < 4
    estimator.add_context(new_x[first], new_y[first], groups=new_groups[first])
    assert estimator.score(new_x[~first], new_y[~first], groups=new_groups[~first]) > max(without, 0.3)
    assert estimator.predict_std(new_x, new_groups).mean() < spread
    mean, std = estimator.predict(new_x[:3], new_groups[:3], return_std=True)
    assert mean.shape == std.shape == (3,) and (std > 0).all()


def test_a_task_column_works_in_a_pipeline_and_in_cross_validation_over_tasks():
    x, y, groups = tasks(9, 5)
    inputs = np.column_stack([groups, x])
    estimator = make_pipeline(StandardScaler(), TaskRegressor(**TINY, task_column=0))
    scores = cross_val_score(estimator, inputs, y, groups=groups, cv=GroupKFold(3))
    assert scores.shape == (3,) and np.isfinite(scores).all()
    frame = sensor_table(6).dropna()
    found = TaskRegressor(**TINY, task_column="id").fit(frame[["id", "x1", "x2", "site"]], frame[["y1", "y2"]])
    assert found.predict(frame[["id", "x1", "x2", "site"]]).shape == (len(frame), 2)
    assert list(found.feature_names_in_) == ["x1", "x2", "site"]
    with pytest.raises(ValueError, match="X: got columns x1, site; it must have x1, x2, site"):
        found.predict(frame[["id", "x1", "site"]])


def test_classes_keep_their_names_and_a_budget_is_kept():
    frame = sensor_table(12)
    estimator = TaskClassifier("cnp", width=8, cpu_seconds=0.3, num_samples=2)
    estimator.fit(frame[["x1", "x2"]].to_numpy(), frame["site"].to_numpy(), groups=frame["id"].to_numpy())
    assert list(estimator.classes_) == sorted(set(frame["site"])) and estimator.n_iter_ >= 20
    x, groups = frame[["x1", "x2"]].to_numpy(), frame["id"].to_numpy()
    np.testing.assert_allclose(estimator.predict_proba(x, groups).sum(1), 1)
    assert set(estimator.predict(x, groups)) <= set(frame["site"])
    assert 0 <= estimator.score(x, frame["site"], groups=groups) <= 1
    assert estimator.predict_std(x, groups).shape == (len(x), 3)


def test_what_does_not_fit_is_refused_in_one_line():
    x, y, groups = tasks(4, 3)
    fitted = TaskRegressor(**TINY).fit(x, y, groups=groups)
    for call, line in [
        (lambda: fitted.predict(x), "groups: the estimator was fitted with groups"),
        (lambda: fitted.predict(x, groups[:3]), r"groups: got shape \[3\]; it must be one for each row of X, 12"),
        (lambda: TaskRegressor(**TINY, task_column="id").fit(pd.DataFrame(x), y), "task_column: got 'id'"),
        (lambda: TaskRegressor(**TINY, task_column=7).fit(x, y), "task_column: got 7"),
        (lambda: TaskRegressor(**TINY, task_column=0).fit(x, y, groups=groups), "groups: got some beside task_column"),
        (lambda: TaskRegressor(**(TINY | {"method": "bnpp"})).fit(x, y), "model: got 'bnpp'; did you mean"),
        (lambda: TaskClassifier(**(TINY | {"method": "nmdp"})).fit(x, groups, groups=groups), "which predict numbers"),
        (lambda: TaskRegressor("cnp", cpu_seconds=-1).fit(x, y), "cpu_seconds: got -1; it must be positive"),
    ]:
        with pytest.raises(ValueError, match=line):
            call()
    assert gb.sklearn.TaskRegressor is TaskRegressor


def test_tasks_are_held_out_to_tell_when_training_was_best_where_there_are_enough():
    x, y, groups = tasks(40, 4)
    options = {"steps": 200, "width": 16, "num_samples": 2}
    kept = TaskRegressor("cnp", **options).fit(x, y, groups=groups)
    lowest = min(kept.history_, key=lambda row: row["held_out_loss"])
    assert len(kept.history_) == 20 and (kept.best_iter_ or 200) == lowest["step"]
    for other in ({"early_stopping": False}, {"validation_fraction": 0.01}):
        last = TaskRegressor("cnp", **options, **other).fit(x, y, groups=groups)
        assert last.best_iter_ is None and "held_out_loss" not in last.history_[0]
    with pytest.raises(ValueError, match=r"^validation_fraction: got 1.5; it must lie in \(0, 1\)$"):
        TaskRegressor("cnp", validation_fraction=1.5, **options).fit(x, y, groups=groups)


def test_a_class_that_held_out_tasks_alone_have_is_known():
    x, _, groups = tasks(40, 4)
    names = np.where(groups == 7, "rare", np.where(x[:, 0] > 0, "up", "down"))
    for seed in range(8):  # among them one that holds task 7 out
        found = TaskClassifier("cnp", **{k: v for k, v in TINY.items() if k != "method"}, random_state=seed)
        assert found.fit(x, names, groups=groups).predict_proba(x, groups=groups).shape == (160, 3)
