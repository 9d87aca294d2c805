"""Text to ids and back: a Hugging Face directory, a GGUF file, and what is said where there is neither."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import tiny_tokenizer
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

import minilm

TEXTS = {
    "ascii": 'The quick brown fox: "it\'s 2024!" (100%)',
    "unicode": "Größe, naïve café, Ελλάδα, שלום, नमस्ते",
    "cjk": "你好，世界。日本語のテキスト 한국어",
    "emoji": "🦊👩\u200d👩\u200d👧 🏳️\u200d🌈",
    "whitespace": "  two  spaces\t\ttabs\n\n\nlines \r\n end   ",
    "only spaces": "    ",
    "combining": "e\u0301 is not é, \u212b is not Å",
    "controls": "\x00\x01\x7f\u200b\ufeff",
    "empty": "",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tokenizer as Hugging Face directories hold it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory) -> minilm.Tokenizer:
    return minilm.load_tokenizer(directory)


# ----------------------------------------------------------------------------------------------------------
# A Hugging Face directory


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_text_comes_back(tokenizer, directory, text):
    """Bytes are the alphabet, so nothing is unknown; the ids are those of transformers."""
    ids = tokenizer.encode(text)
    assert ids == PreTrainedTokenizerFast.from_pretrained(directory).encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.tensor(ids, dtype=torch.long)) == text
    assert (ids == []) == (text == "")
    assert all(0 <= index < tokenizer.vocab_size for index in ids)


def test_known_words_take_few_ids(tokenizer):
    """Merges are applied: otherwise a text would be a row of bytes and still come back."""
    assert len(tokenizer.encode(" the fox")) == 2
    assert tokenizer.pieces(tokenizer.encode("the fox")) == ["the", " fox"]


def test_pieces_label_each_id(tokenizer):
    """One label per id; bytes that are no character by themselves show as such."""
    assert tokenizer.pieces(torch.tensor(tokenizer.encode("a🦊"))) == ["a"] + ["\ufffd"] * 4


def test_special_tokens_are_one_id(tokenizer):
    """They are found in a text, never merged with it, and left out of what is shown on request."""
    ids = tokenizer.encode("fox<|end|><|user|>fox")
    assert [index for index in ids if index < 3] == [0, 1]
    assert tokenizer.decode(ids) == "fox<|end|><|user|>fox"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "foxfox"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0)
    assert tokenizer.vocab_size == 360


def test_a_tokenizer_need_not_have_special_tokens(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.train()).save_pretrained(tmp_path)
    tokenizer = minilm.load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.has_chat_template) == (
        None,
        None,
        False,
    )


def test_a_conversation_is_written_by_the_template(tokenizer):
    """Jinja, with roles and the opening of the answer; its special tokens are single ids."""
    messages = [
        {"role": "user", "content": "the fox?"},
        {"role": "assistant", "content": "It's wide."},
        {"role": "user", "content": "100 {{ not jinja }}"},
    ]
    written = "<|user|>the fox?<|end|><|assistant|>It's wide.<|end|><|user|>100 {{ not jinja }}<|end|>"
    ids = tokenizer.apply_chat_template(messages)
    assert tokenizer.decode(ids) == written + "<|assistant|>"
    assert [index for index in ids if index < 3] == [1, 0, 2, 0, 1, 0, 2]
    closed = tokenizer.apply_chat_template(iter(messages), add_generation_prompt=False)
    assert tokenizer.decode(closed) == written


def test_without_a_template_there_is_no_conversation(tmp_path):
    """The error says why and what to do instead."""
    tiny_tokenizer.save_tokenizer(tmp_path, chat=False)
    tokenizer = minilm.load_tokenizer(tmp_path)
    assert not tokenizer.has_chat_template
    for use in (tokenizer.require_chat_template, lambda: tokenizer.apply_chat_template([])):
        with pytest.raises(ValueError, match=r"has no chat template: .* Use encode\(text\).* or an Instruct"):
            use()


def test_saved_and_loaded_again(tokenizer, tmp_path):
    """All that matters survives, and saving what was loaded changes no byte."""
    first, second = tmp_path / "first", tmp_path / "second"
    tokenizer.save(first)
    again = minilm.load_tokenizer(first)
    again.save(second)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    for text in TEXTS.values():
        assert again.encode(text) == tokenizer.encode(text)
    messages = [{"role": "user", "content": "the fox"}]
    assert again.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert again.vocab_size == tokenizer.vocab_size


def test_a_directory_without_a_tokenizer(tmp_path):
    """The error names the directory and the files that were looked for."""
    with pytest.raises(
        minilm.CheckpointError, match=r"has no tokenizer \(tokenizer.json, .*copy one there"
    ) as caught:
        minilm.load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_broken_tokenizer_file(tmp_path, content):
    """Whatever its parser raises, the reader learns which directory it was."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(minilm.CheckpointError, match=r"the tokenizer in .* cannot be read"):
        minilm.load_tokenizer(tmp_path)


def test_a_source_that_does_not_exist(tmp_path):
    with pytest.raises(minilm.CheckpointError, match="there is no checkpoint"):
        minilm.load_tokenizer(tmp_path / "nothing")


# ----------------------------------------------------------------------------------------------------------
# A GGUF file

# What rules for cutting words disagree about: digits, contractions in either case, newlines, runs of spaces.
TRICKY = [
    "in 2024 1234567 and 12 345, 100%, 3.14159",
    "don't DON'T we'll WE'LL they're It's 'tis rock'n'roll",
    "line\nline\n\n\n    indented\r\n\ttab \n end\n",
    "a  b   c    d     \n   e",
    "naïve e\u0301 Größe🦊 你好12",
    'x=100;y+=2024 (fox),[fox] "fox" don\'t!?\n',
    "<|user|>the zebra 12<|end|>\n the zebra",
    " the",
    "",
]
RULES = ("gpt-2", "smollm", "qwen2", "llama-bpe")


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """Merges that cross spaces, newlines and digits, so that each difference in cutting shows in the ids.

    One token more that no merge makes: only a rule that looks whole words up first finds it.
    """
    whole = tiny_tokenizer.train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), 700)
    values = json.loads(whole.to_str())
    values["model"]["vocab"]["Ġzebra"] = len(values["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(values))


def original(rule: str, trained: Tokenizer) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer with these merges and a rule for words, as transformers builds it."""
    model = json.loads(trained.to_str())["model"]
    vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    end = {"eos_token": "<|end|>", "unk_token": "<|end|>"}
    if rule == "gpt-2":
        made = GPT2Tokenizer(vocabulary, merges, bos_token="<|end|>", **end)
    elif rule == "qwen2":
        made = Qwen2Tokenizer(vocabulary, merges, pad_token="<|end|>", **end)
    else:

        class Converter(TikTokenConverter):  # Llama 3's; it only lacks a way to be given merges
            def tokenizer(self):
                return Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))

        fast = Converter().converted()
        if rule == "smollm":  # as its tokenizer.json says
            fast.model = models.BPE(vocabulary, merges)
            digits = pre_tokenizers.Digits(individual_digits=True)
            words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
            fast.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        made = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    return made


def write_gguf(path: Path, trained: Tokenizer, rule: str | None, **flags) -> Path:
    """A GGUF file with nothing but a tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    tiny_tokenizer.write_gguf_tokenizer(writer, trained, rule)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)
    for name, value in flags.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("rule", RULES)
def test_gguf_gives_the_ids_of_the_original(tmp_path, trained, rule):
    """Tokens, merges and the name of a rule are enough to build the same tokenizer again."""
    found = minilm.load_tokenizer(write_gguf(tmp_path / "model.gguf", trained, rule, add_add_bos_token=False))
    expected = original(rule, trained)
    for text in TRICKY:
        assert found.encode(text) == expected.encode(text), text
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))
    assert found.decode(found.encode(TRICKY[-3]), skip_special_tokens=True) == "the zebra 12\n the zebra"
    assert (found.eos_token_id, found.pad_token_id, found.vocab_size) == (0, 0, len(expected))


def test_the_rules_disagree(trained):
    """On the tricky texts no two rules give the same ids, so the test above tells them apart."""
    rows = {rule: [original(rule, trained).encode(text) for text in TRICKY] for rule in RULES}
    for one in RULES:
        for other in RULES:
            assert (rows[one] == rows[other]) == (one == other), f"{one} and {other}"


def test_gguf_brings_its_chat_template(tmp_path, trained):
    tokenizer = minilm.load_tokenizer(write_gguf(tmp_path / "model.gguf", trained, "smollm"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the fox"}])
    assert tokenizer.decode(ids) == "<|user|>the fox<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("rule", "flags", "start", "end"),
    [
        ("smollm", {}, [], []),
        ("smollm", {"add_add_bos_token": True}, [1], []),
        ("smollm", {"add_add_bos_token": True, "add_add_eos_token": True}, [1], [0]),
        ("qwen2", {"add_add_eos_token": True}, [], [0]),
        ("llama-bpe", {}, [1], []),  # Llama 3's files do not always say it; llama.cpp adds it
        ("llama-bpe", {"add_add_bos_token": False}, [], []),
    ],
)
def test_gguf_says_what_stands_around_a_text(tmp_path, trained, rule, flags, start, end):
    """The beginning- and end-of-text tokens that the model was trained to see; chats bring their own."""
    tokenizer = minilm.load_tokenizer(write_gguf(tmp_path / "model.gguf", trained, rule, **flags))
    inner = trained.encode("fox").ids
    assert tokenizer.encode("fox") == [*start, *inner, *end]
    messages = [{"role": "user", "content": "fox"}]
    assert tokenizer.decode(tokenizer.apply_chat_template(messages)) == "<|user|>fox<|end|><|assistant|>"
    tokenizer.save(tmp_path / "saved")
    assert minilm.load_tokenizer(tmp_path / "saved").encode("fox") == [*start, *inner, *end]


@pytest.mark.parametrize("rule", ["deepseek-llm", "default", None])
def test_an_unknown_rule_is_refused(tmp_path, trained, rule):
    """A guess would cut some words wrongly and nobody would notice; the message names the known rules."""
    path = write_gguf(tmp_path / "model.gguf", trained, rule)
    with pytest.raises(
        minilm.CheckpointError, match=f"is {rule!r}; .* gpt-2, smollm, qwen2, llama-bpe is read"
    ):
        minilm.load_tokenizer(path)


def test_other_kinds_of_tokenizers_are_refused(tmp_path):
    """SentencePiece, for instance, which llama.cpp calls llama."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        minilm.CheckpointError, match=r"has a 'llama' tokenizer .*only byte-level BPE \(gpt2\)"
    ):
        minilm.load_tokenizer(tmp_path / "model.gguf")


def test_a_gguf_tokenizer_with_parts_missing(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(minilm.CheckpointError, match="tokens, token types and merges are needed"):
        minilm.load_tokenizer(tmp_path / "model.gguf")


# ----------------------------------------------------------------------------------------------------------
# What importing costs


def test_importing_minilm_imports_neither_transformers_nor_matplotlib():
    """They take seconds, and computing needs neither; a checkpoint can be loaded and run without them."""
    code = """
import sys, tempfile, torch, minilm
from minilm.families import FAMILIES, get_family
model = minilm.CausalLM(get_family("qwen2").read_config(FAMILIES["qwen2"].tiny))
model.family = "qwen2"
with tempfile.TemporaryDirectory() as folder:
    minilm.save(model, folder)
    minilm.generate(minilm.load(folder), torch.tensor([[1, 2, 3]]), max_new_tokens=2)
print(sorted({"transformers", "matplotlib", "gguf"} & set(sys.modules)))
"""
    root = Path(minilm.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
