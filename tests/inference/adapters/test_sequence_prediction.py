"""The predictive of whole sequences, against the loss of transformers and against draws made by hand."""

import math

import peft
import pytest
import torch
import transformers

import guidebook as gb
from inference.adapters.sequence_prediction import SequencePrediction, predict_sequences


def language_model(config=None):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 11}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    config = config or gb.guides.LrvdConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_log_alpha=1.0)
    model = peft.get_peft_model(network, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def texts():
    return torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))


def test_the_mean_is_the_loss_of_transformers():
    model, ids = language_model(), texts()
    found = predict_sequences(model, [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}])
    assert found.log_prob.shape == (1, 5) and found.num_tokens.tolist() == [6] * 5
    loss = float(model(input_ids=ids, labels=ids).loss.detach())
    assert -float(found.log_prob.sum()) / 30 == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert torch.equal(found.spread, torch.zeros(5, dtype=torch.float64))


def test_padding_and_prompts_are_not_predicted():
    model, ids = language_model(), texts()
    whole = predict_sequences(model, {"input_ids": ids[:1, :4]})
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    padded = predict_sequences(model, {"input_ids": ids[:1], "attention_mask": mask})
    torch.testing.assert_close(padded.log_prob, whole.log_prob, rtol=1e-5, atol=1e-6)
    assert padded.num_tokens.tolist() == [3]
    labels = ids[:1].clone()
    labels[:, :3] = -100
    after = predict_sequences(model, {"input_ids": ids[:1], "labels": labels})
    alone = model(input_ids=ids[:1]).logits.log_softmax(-1)[0, 2:-1]
    expected = alone.gather(-1, ids[0, 3:, None]).sum().detach()
    assert float(after.log_prob) == pytest.approx(float(expected), rel=1e-5) and after.num_tokens.tolist() == [4]
    nothing = predict_sequences(model, {"input_ids": ids[:1], "labels": torch.full((1, 7), -100)})
    assert nothing.log_predictive.tolist() == [0.0]


def test_a_draw_is_one_function_for_all_batches_and_the_predictive_is_the_mean_of_probabilities():
    model, ids = language_model(), texts()
    found = predict_sequences(model, [{"input_ids": ids[:2]}, {"input_ids": ids[2:]}], draws=4, seed=3)
    with torch.no_grad(), gb.adapters.sampling(model, 4, seed=3) as draws:
        by_hand = torch.stack(
            [
                model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))
                for _ in draws
            ]
        )
    torch.testing.assert_close(found.log_prob.float(), by_hand, rtol=1e-4, atol=1e-4)
    assert (found.spread > 0).all()
    torch.testing.assert_close(found.log_predictive.exp(), found.log_prob.exp().mean(0))
    again = predict_sequences(model, {"input_ids": ids}, draws=4, seed=3)
    torch.testing.assert_close(again.log_prob, found.log_prob, rtol=1e-4, atol=1e-4)


def test_other_kinds_draw_too_and_the_mode_is_put_back():
    model = language_model(peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.5, fan_in_fan_out=True))
    model.train()
    found = predict_sequences(model, {"input_ids": texts()}, draws=3)
    assert (found.spread > 0).all() and model.training


def test_predictive_of_made_up_draws():
    made = SequencePrediction(torch.tensor([[0.2, 0.4]]).log().double().T, torch.tensor([1]))
    assert float(made.log_predictive) == pytest.approx(math.log(0.3))


@pytest.mark.parametrize(
    ("loader", "line"),
    [
        ([], "loader: got no batch"),
        ([torch.zeros(2, 3).long()], "loader: got a Tensor; a batch must be a mapping with input_ids"),
        (
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[0, 1, 1]])},
            "pad sequences on the right",
        ),
        ({"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2).long()}, r"labels of shape \[2\]"),
        ({"input_ids": torch.ones(2, 3).long(), "labels": torch.full((2, 3), 11)}, "outside of the 11 tokens"),
    ],
)
def test_what_is_refused(loader, line):
    with pytest.raises(ValueError, match=line):
        predict_sequences(language_model(), loader)


def test_a_classifier_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=11, **sizes))
    with pytest.raises(ValueError, match=r"outputs of shape \[5, 2\]; they must be \[n, L, V\]"):
        predict_sequences(network, {"input_ids": texts()})
