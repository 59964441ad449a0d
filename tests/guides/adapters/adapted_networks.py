"""Small networks with LRVD adapters whose weights and noise matter."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from guides.adapters.lrvd_families import FAMILIES
from guides.adapters.lrvd_layers import lrvd_modules
from guides.adapters.lrvd_peft import LrvdConfig
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, token_ids

every_family = pytest.mark.parametrize("family", FAMILIES)


def scatter(model, scale=0.3, log_alpha=-1.0):
    """Gives every adapter weights and noise levels that matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_lrvd_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) + log_alpha - 3 * ("variance" in name))
            elif "lora_" in name:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model


def adapted(family="rank", r=4, base=None, **options):
    options = {"target_modules": BERT_TARGETS, "lora_alpha": 7} | options
    return get_peft_model(tiny_bert() if base is None else base, LrvdConfig(r=r, family=family, **options)).eval()


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


class Net(nn.Module):
    """Two linear layers."""

    def __init__(self, k_in=6, k_out=3):
        super().__init__()
        self.first, self.second = nn.Linear(k_in, 8), nn.Linear(8, k_out)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def one_layer(family="rank", k_in=5, k_out=4, r=3, **options):
    """A single adapted layer, scattered, with its state."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(k_in, k_out)), LrvdConfig(r=r, family=family, target_modules=["0"], **options)
    )
    scatter(model, 0.5)
    (module,) = lrvd_modules(model).values()
    return model, module.lrvd_state("default"), module.update_scale()
