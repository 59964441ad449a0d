"""NVDP trained for a moment on GP tasks: better than untrained, below the oracle, and because it reads its context."""

import pytest
import torch

from guides import BernoulliExpertGuide
from inference import fit, predict
from inference.objectives import ConditionalPrior
from pp_models import BayesianNetwork, Dataset, oracle_log_likelihood, tasks

STEPS = 200
TEST_BATCHES = 40


def build(seed):
    torch.manual_seed(seed)
    model = BayesianNetwork([1, 32, 32, 2], likelihood="gaussian-head")
    return model, BernoulliExpertGuide(model, width=32)


def stream(seed):
    """GP tasks; seed 10,000 is for testing."""
    return tasks.gp(batch_size=4, seed=seed, num_context=(8, 40), num_target=(20, 30), max_points=None)


def score(model, guide, shuffled=False):
    """Mean log-density of the points of the test tasks, given their context or the context of another task."""
    total = []
    for i in range(TEST_BATCHES):
        batch = stream(10_000).batch(i)
        context = batch.context
        if shuffled:  # the same inputs with the outputs of another task
            context = Dataset(context.x, context.y.roll(1, 0))
        target = batch.target
        total.append(predict(model, guide, context, target, weights="mean").log_prob(target.y).mean())
    return torch.stack(total).mean().item()


@pytest.fixture(scope="module", params=[0, 1, 2])
def scores(request):
    """Log-likelihoods untrained, trained, and trained with another task's context."""
    model, guide = build(request.param)
    untrained = score(model, guide)
    objective = ConditionalPrior(beta=1.4)
    fit(model, guide, stream(request.param), objective, STEPS, request.param, learning_rate=3e-3, progress=False)
    return untrained, score(model, guide), score(model, guide, shuffled=True)


def test_training_raises_the_log_likelihood_of_new_tasks(scores):
    untrained, trained, _ = scores
    assert untrained < -0.8
    assert trained > untrained + 0.15


def test_no_trained_model_beats_the_exact_gaussian_process(scores):
    batches = [stream(10_000).batch(i) for i in range(TEST_BATCHES)]
    oracle = torch.stack([oracle_log_likelihood(b, min_scale=0.1).mean() for b in batches]).mean().item()
    assert scores[1] < oracle + 0.05
    assert oracle < 1.3836


def test_the_context_of_another_task_is_worse(scores):
    _, trained, shuffled = scores
    assert shuffled < trained - 0.2
