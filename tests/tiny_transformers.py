"""Transformers of a few thousand weights, made from their configurations: no download."""

import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

VOCABULARY = 50
BERT_TARGETS = ["query", "value", "intermediate.dense"]


def tiny_bert(width=16, dtype=torch.float32):
    """A BERT classifier of 2 layers and 2 classes, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=16,
        )
        return BertForSequenceClassification(config).to(dtype).eval()


def tiny_gpt2():
    """A GPT-2 language model of 2 layers, whose projections are Conv1D."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        return GPT2LMHeadModel(config).eval()


def token_ids(rows=3, length=7):
    """Random tokens ``[rows, length]``, none of them the padding."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
