"""A GGUF file's tokenizer as `tokenizer.json` and `tokenizer_config.json`.

Byte-level BPE only; GGUF keeps vocabulary and merges in the byte-level alphabet already. How the text is cut
before BPE it only names: the recipes here are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing

from app.errors import UnsupportedModelError
from app.gguf_config import Metadata, context_length, expect, special_ids

# ggml's token types: special tokens, and those that are added to the vocabulary without being special.
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What a tokenizer does around BPE.

    Attributes:
        pre_tokenizer: makes what cuts the text.
        nfc: whether the text is normalised to NFC first.
        ignore_merges: whether a piece that is in the vocabulary is taken whole, whatever the merges say.
        adds_bos: whether a text begins with the token for that, if the file doesn't say.
    """

    pre_tokenizer: Callable[[], Any]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _gpt4_like(digits: str) -> Any:
    """The cut of GPT-4's tokenizer and its successors', which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    cut = Split(Regex(pattern), behavior="isolated")
    return Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


_RECIPES = {
    "smollm": _Recipe(lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])),
    "gpt-2": _Recipe(lambda: ByteLevel(add_prefix_space=False)),
    "llama-bpe": _Recipe(lambda: _gpt4_like(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True),
    "qwen2": _Recipe(lambda: _gpt4_like(r"\p{N}"), nfc=True),
}


def check_supported(metadata: Metadata) -> None:
    """
    Raises:
        UnsupportedModelError: a tokenizer that isn't converted here.
    """
    expect(metadata, "tokenizer.ggml.model", ["gpt2"])
    expect(metadata, "tokenizer.ggml.pre", list(_RECIPES))
    for key in ("tokens", "token_type", "merges"):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise UnsupportedModelError(f"no tokenizer.ggml.{key} in the file's metadata")


def tokenizer_config_json(metadata: Metadata) -> dict[str, Any]:
    """Special tokens and chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {name.removesuffix("_id"): tokens[i] for name, i in special_ids(metadata).items()}
    template = metadata.get("tokenizer.chat_template")
    return {
        # The class that takes tokenizer.json as it is; a model's own class would rebuild the pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length(metadata),
        "clean_up_tokenization_spaces": False,
        **special,
        **({"chat_template": template} if template is not None else {}),
    }


def tokenizer(metadata: Metadata) -> Tokenizer:
    """What is saved as `tokenizer.json`."""
    recipe = _RECIPES[metadata["tokenizer.ggml.pre"]]
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    made = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=recipe.ignore_merges))
    if recipe.nfc:
        made.normalizer = NFC()
    made.pre_tokenizer = recipe.pre_tokenizer()
    made.decoder = ByteLevelDecoder()
    types = metadata["tokenizer.ggml.token_type"]
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for token, its_kind in zip(tokens, types, strict=True) if its_kind == kind]
        made.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", recipe.adds_bos):
        bos = tokens[bos_id]
        made.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return made
