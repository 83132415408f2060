"""Tokenizer against transformers, which reads the same folder, and against known facts of the model."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from app.errors import InvalidRequestError, ModelNotFoundError, PromptTooLongError, UnsupportedModelError
from app.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello, world!",
    "  leading and trailing  ",
    "in 2024, 1234567890 of 3.14",
    "tabs\tand\nnewlines\r\n\n\n",
    "don't can't we'll I'M",
    "ünïcödé — “quotes” … ½",
    "漢字かな交じり文 한국어 العربية עברית",
    "😀👩‍👩‍👧‍👦🇫🇷 e\u0301",
    "def f(x):\n    return x ** 2  # square\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b<|unknown|>",
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 😀"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": " <b>&amp;</b> {{ 7 * 7 }}"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


def test_entries_and_special_tokens_are_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        token_ids = tokenizer.encode(text)
        assert tokenizer.entries(token_ids) == reference.convert_ids_to_tokens(token_ids)
    assert tokenizer.entries([10**6]) == [""]
    special_tokens = tokenizer.special_tokens
    assert "eos_token" in special_tokens
    assert special_tokens == {name: getattr(reference, name) for name in special_tokens}


@pytest.fixture
def folder(smollm2_dir: Path, tmp_path: Path) -> Path:
    """A new folder with the model's small files."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        shutil.copy(smollm2_dir / name, tmp_path)
    return tmp_path


def write_template(folder: Path, template: Any) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))


def rendered(folder: Path, **variables: Any) -> str:
    return Tokenizer.from_folder(folder).render_chat([{"role": "user", "content": "hi"}], **variables)


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_as_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert token_ids == reference(text)["input_ids"]
    assert tokenizer.decode(token_ids) == reference.decode(token_ids, skip_special_tokens=True)
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text


@given(text=st.text(st.characters(codec="utf-8")))
@settings(max_examples=200, deadline=None)
def test_same_ids_as_transformers_for_any_text(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert tokenizer.encode(text) == reference(text)["input_ids"]


@given(text=st.text("abc XYZ,.\n0123456789éß漢字😀ק"))
@settings(max_examples=200, deadline=None)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split_one_by_one(tokenizer: Tokenizer) -> None:
    # As llama.cpp does for this model; a conversion that forgets it makes one token of " 2" or "20".
    assert tokenizer.encode("in 2024") == [254, 216, 34, 32, 34, 36]


def test_whole_words_are_merged(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("The capital of France")] == [
        "The",
        " capital",
        " of",
        " France",
    ]


def test_special_tokens_in_text_are_tokens(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("<|im_start|>user<|im_end|>")
    assert (token_ids[0], token_ids[-1], len(token_ids)) == (1, 2, 3)
    assert tokenizer.decode(token_ids) == "user"


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"lone surrogate .* at character 2"):
        tokenizer.encode("ab\ud800")


def test_encode_from_many_threads(tokenizer: Tokenizer) -> None:
    texts = [f"{text} {number}" for text in TEXTS for number in range(20)]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("ok"), 49152, 2**31]) == "ok"


def test_facts_of_the_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_ids == (2,)


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_render_as_in_transformers(
    tokenizer: Tokenizer, reference: Any, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    expected = reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt) == expected


def test_the_default_system_prompt_is_there(tokenizer: Tokenizer) -> None:
    assert tokenizer.render_chat(CHATS[0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


TEMPLATES = [
    "{{ bos_token }}{{ eos_token }}{{ sep_token }}{{ messages | tojson }}",
    "{% if tools is not none %}tools{% else %}no tools{% endif %}{{ messages[0] | tojson(indent=2) }}",
    "  {% for m in messages %}\n    {% generation %}{{ m.content }}{% endgeneration %}\n  {% endfor %}\n",
    "{% for m in messages * 3 %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ '<é>' | tojson }}{{ missing }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_see_what_transformers_gives_them(folder: Path, template: str) -> None:
    write_template(folder, template)
    messages = [{"role": "user", "content": "<hi> & é"}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    ours = Tokenizer.from_folder(folder).render_chat(messages, add_generation_prompt=False)
    assert ours == expected


def test_strftime_now(folder: Path) -> None:
    write_template(folder, "{{ strftime_now('%%') }}")
    assert rendered(folder) == "%"


def test_template_variables(folder: Path) -> None:
    write_template(folder, "{{ enable_thinking }} {{ tools[0].name }}")
    assert rendered(folder, enable_thinking=False, tools=[{"name": "f"}]) == "False f"


def test_the_template_file_wins(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file")
    assert rendered(folder) == "from the file"


def test_the_default_of_several_templates(folder: Path) -> None:
    write_template(folder, [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}])
    assert rendered(folder) == "yes"


def test_a_special_token_given_as_an_object(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<|im_start|>"}, "chat_template": "{{ bos_token }}!"})
    )
    assert rendered(folder) == "<|im_start|>!"


def test_special_tokens_of_an_older_folder(folder: Path) -> None:
    tokens = {"bos_token": "<|im_end|>", "eos_token": {"content": "<|im_start|>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    write_template(folder, "{{ bos_token }}{{ eos_token }}{{ pad_token }}")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert rendered(folder) == theirs.apply_chat_template(CHATS[0], tokenize=False)
    assert rendered(folder).startswith("<|im_end|><|im_start|>")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": {}}))
    assert rendered(folder).startswith("<|im_start|><|im_end|>")


def test_further_template_files_leave_the_default(folder: Path) -> None:
    write_template(folder, "from the config")
    (folder / "chat_template.jinja").write_text("from the file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("no")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert rendered(folder) == theirs.apply_chat_template(CHATS[0], tokenize=False) == "from the file"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "append"),
    ],
)
def test_a_template_that_fails_refuses_the_messages(folder: Path, template: str, reason: str) -> None:
    write_template(folder, template)
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        rendered(folder)
    assert caught.value.param == "messages"


def test_a_model_without_template_names_the_other_endpoint(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidRequestError, match="/v1/completions") as caught:
        rendered(folder)
    assert caught.value.param == "messages"


def test_a_template_that_is_not_jinja(folder: Path) -> None:
    write_template(folder, "{% for %}")
    with pytest.raises(UnsupportedModelError, match="chat template doesn't compile"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [0, 2]}, {"eos_token_id": 1}, (0, 2)),
        ({}, {"eos_token_id": 1}, (1,)),
        (None, {}, (2,)),
    ],
)
def test_where_end_of_sequence_ids_come_from(
    folder: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(folder).eos_token_ids == expected


def sentencepiece_like() -> tokenizers.Tokenizer:
    """As in Mistral's and older Llamas' folders: spaces are ▁, what isn't in the vocabulary is bytes."""
    vocab = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abchelo",
        "▁a",
        "lo",
        "▁h",
    ]
    made = tokenizers.Tokenizer(
        BPE(
            vocab={token: token_id for token_id, token in enumerate(vocab)},
            merges=[("▁", "a"), ("l", "o"), ("▁", "h")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


@pytest.mark.parametrize("text", ["hello  a b", " é漢😀\n", "a</s>b", "cab"])
def test_a_sentencepiece_like_tokenizer(tmp_path: Path, text: str) -> None:
    sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    token_ids = ours.encode(text, add_special_tokens=True)
    assert token_ids == theirs(text)["input_ids"]
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    expected = theirs.decode(token_ids, skip_special_tokens=True)
    assert ours.decode(token_ids) == expected
    stream = ours.text_stream()
    assert "".join([*map(stream.push, token_ids), stream.flush()]) == expected
    assert ours.eos_token_ids == (2,)


def test_truncation_and_padding_of_the_file_do_not_apply(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_folder(folder).encode("1234567890")) == 10


def test_a_missing_or_broken_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["hello world " * 9000, "éñ🎉" * 9000, "\n" * 50_000 + "a b" * 50_000])
def test_a_text_of_far_too_many_tokens_is_refused_by_its_beginning(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(PromptTooLongError, match=r"first \d+ of \d+ characters have \d+ tokens"):
        tokenizer.encode(text, most=1000)


@pytest.mark.parametrize("text", [" " * 50_000, "word " * 1500, "\n \n" * 9000, "ab" * 400 + " " * 9000])
def test_a_text_that_fits_is_never_refused(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert tokenizer.encode(text, most=len(token_ids)) == token_ids
