"""Estimators for those who live in scikit-learn: many small data sets at once, a first result in four lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from evaluation.run_configuration import OWN_DATA, affordable, configure, train, validation_tasks
from inference import FramePrediction, predict_frame
from pp_models.data import DataError
from pp_models.tasks.frame_tasks import FrameTasks, from_dataframe
from pp_models.tasks.frames import read_frame

#: columns of the table that is made of X, y and groups
TASK, OUTPUT = "guidebook task", "guidebook y"
#: tasks below which nothing is held out, and how often the held-out loss is looked at, at least
LEAST_HELD_OUT, LEAST_LOOKS = 3, 20


class _TaskEstimator(BaseEstimator):
    """What regressor and classifier share."""

    def __init__(
        self,
        method: str = "bnnp",
        *,
        task_column: str | int | None = None,
        cpu_seconds: float = 20.0,
        steps: int | None = None,
        width: int | None = None,
        num_context: tuple[int, int | None] = (0, None),
        max_points: int = 256,
        num_samples: int = 100,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.method = method
        self.task_column = task_column
        self.cpu_seconds = cpu_seconds
        self.steps = steps
        self.width = width
        self.num_context = num_context
        self.max_points = max_points
        self.num_samples = num_samples
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, groups: Any = None) -> Any:
        """Trains on the tasks of a table.

        Args:
            X: inputs ``[n, Dx]``: an array, or a DataFrame, whose texts and dates are inputs too.
            y: outputs ``[n]`` or ``[n, Dy]``; classes ``[n]`` for a classifier.
            groups: which task each row is of ``[n]``; or ``task_column`` names a column of X. Without either all rows
                are one data set.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X, y or groups do not fit, or an argument is out of range.
        """
        features, targets, tasks = self._checked(X, y, groups, fitting=True)
        self._outputs = [f"{OUTPUT} {i}" for i in range(targets.shape[1])]
        table = self._table(features, targets, tasks)
        own = self._tasks(table)
        configuration = configure(self.method, OWN_DATA, steps=self.steps or 1, seed=self._seed(), width=self.width)
        if self.steps is None:
            steps, _ = affordable(configuration, self.cpu_seconds, self.device, own)
            configuration = configure(self.method, OWN_DATA, steps=steps, seed=self._seed(), width=self.width)
        built = configuration.build(own)
        watched = validation_tasks(configuration, own) if own.pools["validation"] else None
        result = train(
            configuration, built, own, progress=False, device=self.device, validation=watched,
            keep_best=watched is not None, log_every=min(50, max(1, configuration.steps // LEAST_LOOKS)),
        )  # fmt: skip
        # in double precision a prediction depends on its own task alone, to the last digits shown
        self.model_, self.guide_, self.columns_ = built.model.double(), built.guide.double(), own.columns
        self.n_iter_, self.best_iter_, self.history_ = result.steps, result.best_step, result.history
        self.context_ = table
        return self

    def add_context(self, X: Any, y: Any, groups: Any = None) -> Any:
        """Gives predictions further observed rows, of new tasks say; nothing is trained.

        Args:
            X: inputs ``[n, Dx]``.
            y: outputs.
            groups: which task each row is of.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X, y or groups do not fit.
        """
        check_is_fitted(self, "model_")
        features, targets, tasks = self._checked(X, y, groups, fitting=False)
        self.context_ = pd.concat([self.context_, self._table(features, targets, tasks)], ignore_index=True)
        return self

    def predictive(self, X: Any, groups: Any = None) -> FramePrediction:
        """The whole posterior predictive at X: ``.mean``, ``.std``, ``.samples``, ``.quantile(q)``, ``.log_prob(y)``.

        Each row is predicted given the observed rows of its task, at most ``max_points`` of them: those of ``fit`` and
        of :meth:`add_context`. A task without any is predicted by the prior.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.

        Raises:
            ValueError: X or groups do not fit.
        """
        check_is_fitted(self, "model_")
        features, _, tasks = self._checked(X, None, groups, fitting=False)
        asked = self._table(features, np.full((len(features), len(self._outputs)), None, dtype=object), tasks)
        known = self.context_[self.context_[TASK].isin(set(asked[TASK]))]
        if len(known) and known.groupby(TASK).size().max() > self.max_points:
            known = known.sample(frac=1.0, random_state=self._seed()).groupby(TASK).head(self.max_points).sort_index()
        whole = pd.concat([known.astype({name: object for name in self._outputs}), asked], ignore_index=True)
        return predict_frame(self.model_, self.guide_, whole, self.columns_, self.num_samples, seed=self._seed())

    def _checked(self, X: Any, y: Any, groups: Any, fitting: bool) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """Features, outputs ``[n, Dy]`` and task of each row."""
        if self.task_column is not None and groups is not None:
            raise ValueError("groups: got some beside task_column; it must be one of them")
        if hasattr(X, "to_pandas") and not isinstance(X, pd.DataFrame):
            X = X.to_pandas()
        if self.task_column is not None:
            X, groups = self._without_task(X)
        mixed = isinstance(X, pd.DataFrame) and not all(pd.api.types.is_numeric_dtype(kind) for kind in X.dtypes)
        if mixed:  # texts and dates, which scikit-learn's own check would refuse
            self._check_names(X, fitting)
            features = read_frame(X, "X")
            targets = None if y is None else np.asarray(y)
        elif y is None and not fitting:
            features = self._as_frame(validate_data(self, X, reset=fitting, dtype=np.float64))
            targets = None
        else:
            checked = validate_data(
                self, X, y, reset=fitting, dtype=np.float64, multi_output=True, y_numeric=not self._classifies
            )
            features, targets = self._as_frame(checked[0]), checked[1]
        if targets is not None:
            if self._classifies:
                check_classification_targets(targets)
                targets = column_or_1d(targets, warn=True)
                if fitting:
                    self.classes_ = np.unique(targets)
            if fitting:
                self._flat = targets.ndim == 1
            targets = targets.reshape(len(targets), -1)
            if len(targets) != len(features):
                raise ValueError(f"y: got {len(targets)} rows; it must have as many as X, {len(features)}")
        tasks = np.zeros(len(features), dtype=int) if groups is None else np.asarray(groups)
        if tasks.shape != (len(features),):
            raise ValueError(
                f"groups: got shape {list(tasks.shape)}; it must be one for each row of X, {len(features)}"
            )
        if fitting:
            self._has_tasks: bool = groups is not None
        if (groups is not None) != self._has_tasks:
            had = "with" if self._has_tasks else "without"
            raise ValueError(f"groups: the estimator was fitted {had} groups; it must be asked in the same way")
        return features, targets if targets is not None else np.empty((len(features), 0)), tasks

    def _without_task(self, X: Any) -> tuple[Any, np.ndarray]:
        if isinstance(X, pd.DataFrame):
            if self.task_column not in X.columns:
                raise DataError(
                    f"task_column: got {self.task_column!r}; it must be a column of X: {', '.join(map(str, X))}"
                )
            return X.drop(columns=[self.task_column]), X[self.task_column].to_numpy()
        X = np.asarray(X)
        if not isinstance(self.task_column, int) or X.ndim != 2 or not -X.shape[1] <= self.task_column < X.shape[1]:
            raise DataError(f"task_column: got {self.task_column!r}; of an array it must be the number of a column")
        return np.delete(X, self.task_column, axis=1), X[:, self.task_column]

    def _check_names(self, X: pd.DataFrame, fitting: bool) -> None:
        names = np.asarray([str(name) for name in X.columns], dtype=object)
        if fitting:
            self.feature_names_in_, self.n_features_in_ = names, len(names)
        elif list(names) != list(getattr(self, "feature_names_in_", names)):
            raise DataError(f"X: got columns {', '.join(names)}; it must have {', '.join(self.feature_names_in_)}")

    def _as_frame(self, X: np.ndarray) -> pd.DataFrame:
        names = getattr(self, "feature_names_in_", [f"x{i + 1}" for i in range(X.shape[1])])
        return pd.DataFrame(X, columns=list(names))

    def _table(self, features: pd.DataFrame, targets: np.ndarray, tasks: np.ndarray) -> pd.DataFrame:
        table = features.reset_index(drop=True)
        table[TASK] = tasks
        for name, column in zip(self._outputs, targets.T, strict=True):
            table[name] = column
        return table

    def _tasks(self, table: pd.DataFrame) -> FrameTasks:
        inputs = [name for name in table.columns if name != TASK and name not in self._outputs]
        share = self._held_out_share(table[TASK].nunique())
        return from_dataframe(
            table, TASK, inputs, self._outputs, classes=self._classifies, split=(1 - share, share, 0.0),
            seed=self._seed(), num_context=self.num_context, max_points=max(self.max_points, 2), keep_constant=True,
        )  # fmt: skip

    def _held_out_share(self, num_tasks: int) -> float:
        """The share of tasks that decides when training was best; none of few tasks, whose loss would say little."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: got {self.validation_fraction}; it must lie in (0, 1)")
        enough = self.validation_fraction * num_tasks >= LEAST_HELD_OUT
        return self.validation_fraction if self.early_stopping and enough else 0.0

    @property
    def _classifies(self) -> bool:
        return isinstance(self, ClassifierMixin)

    def _seed(self) -> int:
        if isinstance(self.random_state, np.random.RandomState):
            raise ValueError("random_state: got a RandomState; it must be an integer, so that predictions repeat")
        return 0 if self.random_state is None else int(self.random_state)


class TaskRegressor(RegressorMixin, _TaskEstimator):
    """Amortised regression over many small data sets, with uncertainty.

    One model is trained on all tasks; a prediction is made given the rows of its own task, without further training.

    Args:
        method: ``"bnnp"``, ``"nvdp"``, ``"nmdp"``, ``"cnp"`` …; ``guidebook list models`` has all.
        task_column: the column of X that says which task a row is of (its number, of an array), in place of ``groups``.
        cpu_seconds: of training, over all threads; how many steps they buy is measured.
        steps: optimizer steps in place of ``cpu_seconds``, so that a fit repeats exactly.
        width: hidden width of the networks; the method's own by default.
        num_context: fewest and most context points in training; None is all but one.
        max_points: most points of a task in a step, and in the context of a prediction.
        num_samples: posterior draws of a prediction.
        early_stopping: end at the parameters whose loss on held-out tasks was lowest, where these are three or more.
        validation_fraction: share of the tasks that is held out for it, as scikit-learn's networks hold out rows.
        random_state: seed of all draws, an integer.
        device: where to train.

    Attributes:
        model_: the fitted model.
        guide_: its guide.
        columns_: how inputs and outputs are scaled.
        n_iter_: steps done.
        best_iter_: the step whose parameters were kept; None where it is the last.

    Example:
        >>> import numpy as np
        >>> from guidebook.sklearn import TaskRegressor
        >>> x, groups = np.random.rand(60, 1), np.repeat(np.arange(12), 5)
        >>> y = x[:, 0] * (1 + groups % 3)
        >>> estimator = TaskRegressor("cnp", steps=5).fit(x, y, groups=groups)
        >>> estimator.predict(x[:3], groups=groups[:3]).shape
        (3,)
    """

    def predict(self, X: Any, groups: Any = None, return_std: bool = False) -> Any:
        """Predictive means ``[n]`` or ``[n, Dy]``, as y was; with ``return_std`` standard deviations as well.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.
            return_std: whether to return them too.

        Raises:
            ValueError: X or groups do not fit.
        """
        found = self.predictive(X, groups)
        mean = self._shaped(found.mean.numpy())
        return (mean, self._shaped(found.std.numpy())) if return_std else mean

    def predict_std(self, X: Any, groups: Any = None) -> np.ndarray:
        """Predictive standard deviations, noise and posterior together, ``[n]`` or ``[n, Dy]``.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.

        Raises:
            ValueError: X or groups do not fit.
        """
        return self._shaped(self.predictive(X, groups).std.numpy())

    def score(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> float:
        """The coefficient of determination R² of the predictive mean.

        Args:
            X: inputs ``[n, Dx]``.
            y: outputs.
            sample_weight: ``[n]``.
            groups: which task each row is of.

        Raises:
            ValueError: X, y or groups do not fit.
        """
        return float(r2_score(y, self.predict(X, groups), sample_weight=sample_weight))

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._flat else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True
        return tags


class TaskClassifier(ClassifierMixin, _TaskEstimator):
    """Amortised classification over many small data sets (few-shot), with uncertainty.

    Args:
        method: ``"nvdp"``, ``"bnnp"``, ``"cnp"`` …; a mixture predicts no classes.
        task_column: the column of X that says which task a row is of (its number, of an array), in place of ``groups``.
        cpu_seconds: of training, over all threads.
        steps: optimizer steps in place of ``cpu_seconds``.
        width: hidden width of the networks.
        num_context: fewest and most context points in training.
        max_points: most points of a task in a step, and in the context of a prediction.
        num_samples: posterior draws of a prediction.
        early_stopping: end at the parameters whose loss on held-out tasks was lowest, where these are three or more.
        validation_fraction: share of the tasks that is held out for it, as scikit-learn's networks hold out rows.
        random_state: seed of all draws, an integer.
        device: where to train.

    Attributes:
        classes_: in order.
        model_: the fitted model.
        guide_: its guide.
        columns_: how inputs are scaled.
        n_iter_: steps done.
        best_iter_: the step whose parameters were kept; None where it is the last.
    """

    def predict_proba(self, X: Any, groups: Any = None) -> np.ndarray:
        """Probabilities of the classes ``[n, C]``, mean over posterior draws.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.

        Raises:
            ValueError: X or groups do not fit.
        """
        found = self.predictive(X, groups).mean.numpy().astype(np.float64)
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any, groups: Any = None) -> np.ndarray:
        """The most probable class of each row ``[n]``.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.

        Raises:
            ValueError: X or groups do not fit.
        """
        best = self.predict_proba(X, groups).argmax(1)
        return self.classes_[best]

    def predict_std(self, X: Any, groups: Any = None) -> np.ndarray:
        """Standard deviation over posterior draws of each class's probability ``[n, C]``.

        Args:
            X: inputs ``[n, Dx]``.
            groups: which task each row is of.

        Raises:
            ValueError: X or groups do not fit.
        """
        return self.predictive(X, groups).std.numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> float:
        """Accuracy.

        Args:
            X: inputs ``[n, Dx]``.
            y: classes.
            sample_weight: ``[n]``.
            groups: which task each row is of.

        Raises:
            ValueError: X, y or groups do not fit.
        """
        return float(accuracy_score(y, self.predict(X, groups), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags
