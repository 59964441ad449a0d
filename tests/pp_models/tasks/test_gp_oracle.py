import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, Matern

from pp_models import Dataset, TaskBatch, tasks
from pp_models.tasks.gp_oracle import oracle_joint_log_likelihood, oracle_log_likelihood, oracle_predict

F64 = torch.float64


def sklearn_kernel(name, lengthscale, scale, period):
    constant = ConstantKernel(scale**2)
    return {
        "rbf": constant * RBF(lengthscale),
        "matern52": constant * Matern(lengthscale, nu=2.5),
        "periodic": constant * ExpSineSquared(lengthscale, period),
        "weakly-periodic": constant * RBF(lengthscale) * ExpSineSquared(1.0, period),
    }[name]


def sklearn_posterior(name, batch, i, x):
    """Mean and noisy covariance of task i at x, by scikit-learn."""
    length, scale, period, noise = (batch.truth[k][i].item() for k in ("lengthscale", "scale", "period", "noise"))
    gp = GaussianProcessRegressor(sklearn_kernel(name, length, scale, period), alpha=noise**2, optimizer=None)
    gp.fit(batch.context.x[i].numpy(), batch.context.y[i, :, 0].numpy())
    mean, cov = gp.predict(x.numpy(), return_cov=True)
    return mean, cov + noise**2 * np.eye(len(x))


@pytest.mark.parametrize("name", ["rbf", "matern52", "periodic", "weakly-periodic"])
def test_the_oracle_is_scikit_learns_gp(name):
    batch = tasks.gp(name, batch_size=3, seed=2, num_context=(20, 40), max_points=60, dtype=F64).batch(0)
    mean, std = oracle_predict(batch, batch.full.x)
    for points in ("target", "context", "full"):
        data = getattr(batch, points)
        marginal, joint = oracle_log_likelihood(batch, points), oracle_joint_log_likelihood(batch, points)
        assert marginal.shape == data.x.shape[:-1] and joint.shape == (3,)
        for i in range(3):
            m, cov = sklearn_posterior(name, batch, i, data.x[i])
            y, sd = data.y[i, :, 0].numpy(), np.sqrt(np.diag(cov))
            np.testing.assert_allclose(marginal[i].numpy(), norm.logpdf(y, m, sd), atol=1e-6)
            assert joint[i].item() == pytest.approx(multivariate_normal.logpdf(y, m, cov) / len(y), abs=1e-6)
            if points == "full":
                np.testing.assert_allclose(mean[i, :, 0].numpy(), m, atol=1e-6)
                np.testing.assert_allclose(std[i, :, 0].numpy(), sd, atol=1e-6)


def test_the_floor_raises_the_marginals_and_the_joints_diagonal():
    batch = tasks.gp(batch_size=2, num_context=(20, 30), max_points=45, dtype=F64).batch(3)
    marginal = oracle_log_likelihood(batch, "full", min_scale=0.1)
    joint = oracle_joint_log_likelihood(batch, "full", min_scale=0.1)
    for i in range(2):
        m, cov = sklearn_posterior("rbf", batch, i, batch.full.x[i])
        y, variance = batch.full.y[i, :, 0].numpy(), np.maximum(np.diag(cov), 0.01)
        np.testing.assert_allclose(marginal[i].numpy(), norm.logpdf(y, m, np.sqrt(variance)), atol=1e-6)
        np.fill_diagonal(cov, variance)
        assert joint[i].item() == pytest.approx(multivariate_normal.logpdf(y, m, cov) / len(y), abs=1e-6)
    assert marginal.max() <= norm.logpdf(0, 0, 0.1) + 1e-12


def test_joint_of_one_target_is_its_marginal_and_chains_to_the_full_joint():
    batch = tasks.gp(batch_size=4, num_context=(5, 5), max_points=8, dtype=F64).batch(0)
    one = TaskBatch(batch.context, batch.target.points(slice(0, 1)), batch.truth)
    torch.testing.assert_close(oracle_joint_log_likelihood(one), oracle_log_likelihood(one).squeeze(-1))
    prior = TaskBatch(batch.context.points(slice(0, 0)), batch.full, batch.truth)
    first = TaskBatch(batch.context.points(slice(0, 0)), batch.context, batch.truth)
    t = batch.target.num_points
    chained = 5 * oracle_joint_log_likelihood(first) + t * oracle_joint_log_likelihood(batch)
    torch.testing.assert_close(chained, (5 + t) * oracle_joint_log_likelihood(prior), rtol=1e-8, atol=1e-8)


def test_padding_changes_nothing():
    batch = tasks.gp("matern52", batch_size=2, num_context=(6, 6), max_points=12, dtype=F64).batch(0)

    def padded(data):
        junk = torch.full((2, 3, 1), 7.0, dtype=F64)
        mask = torch.cat([data.full_mask(), torch.zeros(2, 3, dtype=torch.bool)], -1)
        return Dataset(torch.cat([data.x, junk], 1), torch.cat([data.y, junk * float("nan")], 1), mask)

    ragged = TaskBatch(padded(batch.context), padded(batch.target), batch.truth)
    for points in ("target", "context", "full"):
        for floor in (None, 0.1):
            joint = oracle_joint_log_likelihood(ragged, points, floor)
            torch.testing.assert_close(joint, oracle_joint_log_likelihood(batch, points, floor))
            sums = oracle_log_likelihood(ragged, points, floor).sum(-1)
            torch.testing.assert_close(sums, oracle_log_likelihood(batch, points, floor).sum(-1))
    torch.testing.assert_close(oracle_predict(ragged, batch.target.x), oracle_predict(batch, batch.target.x))


def test_without_context_the_oracle_gives_the_prior():
    batch = tasks.gp(batch_size=3, num_context=(0, 0), max_points=9).batch(0)
    mean, std = oracle_predict(batch, torch.linspace(-1, 1, 5).unsqueeze(-1))
    assert mean.shape == std.shape == (3, 5, 1) and mean.eq(0).all()
    prior = (batch.truth["scale"] ** 2 + 0.02**2).sqrt()
    torch.testing.assert_close(std, prior[:, None, None].expand(3, 5, 1))
    assert oracle_log_likelihood(batch, "context").shape == (3, 0)
    assert oracle_joint_log_likelihood(batch, "context").eq(0).all()


def test_reduced_reference_values_of_the_random_kernel_test_protocol():
    # reference, 1500 tasks of 300 distinct m: LL 2.03 / RLL 2.60 / PLL 1.98; floored at 0.1: 1.205 / 1.372 / 1.196
    stream = tasks.gp_test(batch_size=1)
    batches = [stream.batch(i) for i in range(100)]
    for floor, reference in ((None, (2.03, 2.60, 1.98)), (0.1, (1.205, 1.372, 1.196))):
        scores = [
            np.mean([oracle_log_likelihood(b, points, floor).mean().item() for b in batches])
            for points in ("full", "context", "target")
        ]
        np.testing.assert_allclose(scores, reference, atol=0.2)


@pytest.mark.parametrize(
    ("kernel", "marginal", "joint"),
    [("rbf", 1.61, 1.85), ("matern52", 1.20, 1.43), ("periodic", 1.18, 1.47), ("weakly-periodic", 0.53, 0.82)],
)
def test_reduced_reference_values_under_the_tnp_counts(kernel, marginal, joint):
    stream = tasks.gp(kernel, batch_size=16, seed=5, **tasks.TNP_COUNTS)
    batches = [stream.batch(i) for i in range(100)]
    assert np.mean([oracle_log_likelihood(b).mean().item() for b in batches]) == pytest.approx(marginal, abs=0.2)
    assert np.mean([oracle_joint_log_likelihood(b).mean().item() for b in batches]) == pytest.approx(joint, abs=0.2)


def test_bad_calls_get_one_clear_line():
    batch = tasks.gp(batch_size=2).batch(0)
    with pytest.raises(ValueError, match="points: got 'all'; it must be one of target, context, full"):
        oracle_log_likelihood(batch, "all")
    with pytest.raises(ValueError, match="min_scale: got -0.1"):
        oracle_joint_log_likelihood(batch, min_scale=-0.1)
    with pytest.raises(ValueError, match="batch.truth: it lacks kernel"):
        oracle_predict(TaskBatch(batch.context, batch.target), batch.target.x)
    with pytest.raises(ValueError, match="x: got width 2"):
        oracle_predict(batch, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="batch.target: y is None"):
        oracle_log_likelihood(TaskBatch(batch.context, batch.target.without_y(), batch.truth))
