"""One rule for the dtype of data in every call: it is cast to the model's; and models that are of a half precision."""

import pytest
import torch

import guidebook as gb
from evaluation import to_arviz
from inference import fit, nuts, predict, prior_predictive, sample_posterior, swag
from inference.objectives import make
from inference.posterior_draws import posterior_log_weights
from pp_models import BayesianNetwork, Dataset, LowRankAdapted, MixtureDensityNetwork
from tests.guides.guide_table import ROWS, latent_sites

every_guide = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
HALVES = [torch.float16, torch.bfloat16]


@every_dtype
@every_guide
def test_data_are_cast_to_the_dtype_of_the_model(row, dtype):
    model, guide = (module.eval() for module in row.make(dtype=torch.float32))
    d, x = row.data(3).to(dtype=dtype), row.data(3, n=4).x.to(dtype)
    same, same_x = d.to(dtype=torch.float32), x.float()
    found, expected = (predict(model, guide, *each, num_samples=3, seed=0) for each in ((d, x), (same, same_x)))
    assert torch.equal(found.samples, expected.samples)
    assert found.mean.dtype == torch.float32
    found, expected = (sample_posterior(model, guide, each, 3, seed=0) for each in (d, same))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    found, expected = (to_arviz(model, guide, each, 4, seed=0) for each in (d, same))
    for group in ("posterior", "log_likelihood", "sample_stats"):
        assert found[group].equals(expected[group])  # what is told of the time may differ


@every_dtype
def test_weights_of_draws_fits_and_priors_take_any_dtype(dtype):
    row = ROWS["mean-field"]
    model, guide = row.make(dtype=torch.float32)
    d = row.data(3).to(dtype=dtype)
    torch.manual_seed(0)
    found = posterior_log_weights(model, guide, d, num_samples=4)
    torch.manual_seed(0)
    assert torch.equal(found, posterior_log_weights(model, guide, d.to(dtype=torch.float32), num_samples=4))
    assert fit(model, guide, d, steps=2, progress=False).skipped == []
    plain = BayesianNetwork([1, 4, 1], noise_scale=0.3)
    assert prior_predictive(plain, d.x, 3, seed=0).samples.dtype == torch.float32
    assert swag(plain, d, 40, warmup=1).mean.dtype == torch.float32


MODELS = {
    "network": lambda: BayesianNetwork([1, 3, 1], noise_scale=0.3),
    "mixture": lambda: MixtureDensityNetwork(2, 1, 1, "strict", width=4),
    "adapter": lambda: LowRankAdapted(
        torch.nn.Sequential(torch.nn.Linear(1, 1)), ["0"], 2, likelihood="gaussian", rank_prior="half-cauchy"
    ),
}


@pytest.mark.parametrize("data_dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_nuts_takes_data_of_any_dtype(name, data_dtype):
    d = Dataset(torch.randn(6, 1), torch.randn(6, 1)).to(dtype=data_dtype)
    model = MODELS[name]()
    found, expected = (nuts(model, each, 5, 5, seed=0) for each in (d, d.to(dtype=torch.float32)))
    assert all(torch.equal(found.draws[site], value) for site, value in expected.draws.items())
    assert found.predict(d.x).mean.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@every_guide
def test_a_model_of_half_precision_predicts_and_trains(row, dtype):
    model, guide = (module.to(dtype).eval() for module in row.make(dtype=torch.float32))
    d = row.data(3, dtype=torch.float32)
    found = predict(model, guide, d, row.data(3, n=4).x, 3, seed=0)
    assert bool(torch.isfinite(found.samples).all())
    wide = {name: s["value"].dtype for name, s in latent_sites(guide, d.to(dtype=dtype)).items()}
    assert {t for name, t in wide.items() if name != "mixture_weights"} <= {dtype}
    d = d.to(dtype=dtype)
    loss = make(row.objective).differentiable_loss(model, guide, d if row.objective == "elbo" else d.split(4))
    if loss.requires_grad:
        loss.backward()
    gradients = [p.grad for m in (model, guide) for p in m.parameters() if p.grad is not None]
    assert bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_posterior_of_half_precision_is_factorised_in_single(dtype, solver):
    """So it differs by the rounding of its inputs, whatever the precision of the pseudo-observations (up to e^12)."""
    torch.manual_seed(1)
    model = BayesianNetwork([1, 6, 1], noise_scale=0.01)
    from guides import BNNWeightGuide

    guide = BNNWeightGuide(model, final_noise="real", solver=solver)
    d = Dataset(torch.randn(2, 40, 1), torch.randn(2, 40, 1)).to(dtype=dtype)
    model, guide = model.to(dtype), guide.to(dtype)
    q = guide.conditional(0, d, d.x, [])
    low = torch.distributions.kl_divergence(q, model.prior.layer(0, []))
    assert q.mean.dtype == q.rsample().dtype == dtype and low.dtype == torch.float32
    rounded, d = guide.moved_to(model.float()).float(), d.to(dtype=torch.float32)
    exact = rounded.conditional(0, d, d.x, [])
    torch.testing.assert_close(
        low, torch.distributions.kl_divergence(exact, model.prior.layer(0, [])), rtol=0.02, atol=0
    )
    torch.testing.assert_close(q.mean.float(), exact.mean, rtol=0.05, atol=0.05)


class Tagger(torch.nn.Module):
    """Mean of embeddings, and a linear layer to adapt."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.embedding, self.head = torch.nn.Embedding(5000, 4), torch.nn.Linear(4, 2)

    def forward(self, x):
        self.seen.append(x.detach().long())
        return self.head(self.embedding(x.long()).mean(-2))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_token_ids_are_not_rounded_to_the_precision_of_the_network(dtype):
    """4090 in bfloat16 is 4096: another token, and no error."""
    network = Tagger().to(dtype)
    model = gb.LowRankAdapted(network, ["head"], rank=2, fold_draws=False)
    ids, y = torch.arange(4080, 4092).reshape(4, 3), torch.tensor([0, 1, 0, 1])
    guide = gb.guides.RankwiseGuide(model)
    data = gb.Dataset(ids.float(), y)
    gb.fit(model, guide, data, "elbo", steps=1, progress=False)
    gb.predict(model, guide, data, data.x, num_samples=2, seed=0)
    assert len(network.seen) > 1
    for seen in network.seen:
        assert torch.equal(seen.reshape(-1, 4, 3)[0], ids)
