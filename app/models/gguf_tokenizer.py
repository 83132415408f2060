"""A GGUF file's tokenizer as `tokenizer.json` and `tokenizer_config.json`.

Two kinds are converted. `gpt2` is byte-level BPE: GGUF has its vocabulary and merges in the byte-level
alphabet, but of how a text is cut before BPE only the name; the recipes here are those of the models' own
tokenizer.json. `llama` is sentencepiece's BPE: GGUF has its pieces and their scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing

from app.errors import UnsupportedModelError
from app.models.gguf_config import Metadata, context_length, expect, special_ids

# ggml's token types. Control tokens are special; user-defined ones are added tokens that are not special.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The steps of a byte-level tokenizer around BPE.

    Attributes:
        pre_tokenizer: makes the part that cuts the text.
        nfc: whether the text is normalised to NFC first.
        ignore_merges: whether a piece in the vocabulary is one token, even if no merges lead to it.
        adds_bos: see `_adds_bos`.
    """

    pre_tokenizer: Callable[[], Any]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _gpt4_like(digits: str) -> Any:
    """The cut of GPT-4's tokenizer and of its successors, which differ in how many digits stay together."""
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
    """Check what can be checked before the tokenizer is built.

    Raises:
        UnsupportedModelError: a tokenizer that isn't converted here.
    """
    expect(metadata, "tokenizer.ggml.model", ["gpt2", "llama"])
    needed = ["tokens", "token_type", "scores"]
    if not _is_sentencepiece(metadata):
        expect(metadata, "tokenizer.ggml.pre", list(_RECIPES))
        needed = ["tokens", "token_type", "merges"]
    for key in needed:
        if f"tokenizer.ggml.{key}" not in metadata:
            raise UnsupportedModelError(f"no tokenizer.ggml.{key} in the file's metadata")


def _is_sentencepiece(metadata: Metadata) -> bool:
    return bool(metadata["tokenizer.ggml.model"] == "llama")


def tokenizer_config_json(metadata: Metadata) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: special tokens and chat template."""
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
    """The tokenizer that is saved as `tokenizer.json`."""
    made = _sentencepiece(metadata) if _is_sentencepiece(metadata) else _byte_level(metadata)
    for kind, special in ((_UNKNOWN, True), (_CONTROL, True), (_USER_DEFINED, False)):
        added = [AddedToken(token, special=special, normalized=False) for token in _tokens(metadata, kind)]
        made.add_tokens(added)
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", _adds_bos(metadata)):
        bos = metadata["tokenizer.ggml.tokens"][bos_id]
        made.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return made


def _adds_bos(metadata: Metadata) -> bool:
    """Whether a text begins with the token for its beginning, where the file doesn't say."""
    return _is_sentencepiece(metadata) or _RECIPES[metadata["tokenizer.ggml.pre"]].adds_bos


def _tokens(metadata: Metadata, kind: int) -> list[str]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    return [token for token, its_kind in zip(tokens, kinds, strict=True) if its_kind == kind]


def _vocabulary(metadata: Metadata) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def _byte_level(metadata: Metadata) -> Tokenizer:
    recipe = _RECIPES[metadata["tokenizer.ggml.pre"]]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(BPE(_vocabulary(metadata), merges, ignore_merges=recipe.ignore_merges))
    if recipe.nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = recipe.pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(metadata: Metadata) -> Tokenizer:
    """Spaces are ▁, and characters without a piece are their UTF-8 bytes."""
    unknown = _tokens(metadata, _UNKNOWN)
    model = BPE(
        _vocabulary(metadata),
        _merges_by_score(metadata),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


def _merges_by_score(metadata: Metadata) -> list[tuple[str, str]]:
    """Every cut of a piece into two pieces is a merge, the pieces with the best scores first.

    sentencepiece merges the two neighbours that together make the piece with the highest score.
    """
    ids, scores = _vocabulary(metadata), metadata["tokenizer.ggml.scores"]
    pieces = set(_tokens(metadata, _NORMAL))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: (-scores[ids[piece]], ids[piece]))
        for cut in range(1, len(piece))
    ]
    return [(left, right) for left, right in merges if left in pieces and right in pieces]
