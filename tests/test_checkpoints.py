"""The small models that ship: transformers reads them, and they know more than counts of words tell."""

import ast
import codeop
import functools
import re
import warnings
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

import minilm
from minilm import card, data, initialize, train

FOLDER = Path(minilm.__file__).parent / "checkpoints"
NAMES = ["tiny-gemma", "tiny-gpt-bigcode", "tiny-gpt-neox", "tiny-qwen2"]
CODE = [
    name for name in NAMES if "--data stdlib" in (FOLDER / name / "README.md").read_text(encoding="utf-8")
]


def card_losses(name: str) -> tuple[float, float, float]:
    """Unigram, trigram and the model's own loss, as the card reports them."""
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^\| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|$", text, re.MULTILINE)
    return tuple(map(float, found.groups()))


@functools.cache
def held_out_texts(corpus: str) -> list[str]:
    """What the models that were trained on this corpus have not seen."""
    return data.split_held_out(data.read_corpus([corpus]))[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_whole(name):
    """At most 3 MB of weights in bf16, of the family it is named for, with all that a directory needs."""
    assert (FOLDER / name / "model.safetensors").stat().st_size <= 3_000_000
    model = minilm.load(name)
    assert model.dtype == torch.bfloat16 and name == f"tiny-{model.family}".replace("_", "-")
    assert {path.name for path in (FOLDER / name).iterdir()} == {
        "README.md", "config.json", "generation_config.json", "loss.png", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_transformers_generates_the_same_tokens(name):
    """32 greedy tokens in fp32, and the same ids from transformers' reading of the tokenizer."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()
    fast = transformers.AutoTokenizer.from_pretrained(FOLDER / name)
    model, tokenizer = minilm.load(name, dtype=torch.float32), minilm.load_tokenizer(name)
    read_alone = tokenizers.Tokenizer.from_file(str(FOLDER / name / "tokenizer.json"))
    whole = Path(train.__file__).read_text(encoding="utf-8")
    assert tokenizer.encode(whole) == read_alone.encode(whole).ids, "transformers cuts words in another way"
    text = "    def __init__(self" if name in CODE else "The value of the"
    ids = tokenizer.encode(text)
    assert fast(text).input_ids == ids and tokenizer.decode(ids) == text
    prompt = torch.tensor([ids])
    expected = reference.generate(prompt, max_new_tokens=32, do_sample=False)
    assert torch.equal(minilm.generate(model, prompt, max_new_tokens=32), expected)


@pytest.mark.parametrize("name", NAMES)
def test_it_beats_trigrams_on_text_it_has_not_seen(name):
    """The card says so, and this Python's held-out documents give a loss below the card's baseline."""
    unigram, trigram, own = card_losses(name)
    assert own < trigram < unigram
    model, tokenizer = minilm.load(name, dtype=torch.float32), minilm.load_tokenizer(name)
    held_out = held_out_texts("stdlib" if name in CODE else "topics")
    length = model.config.max_positions
    if name in CODE:
        documents = data.fill_in_the_middle(held_out, tokenizer, length)
    else:
        documents = data.encode_documents(held_out, tokenizer)
    rows = data.pack(documents, length)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:64]
    found = train.evaluate(model, rows[chosen])
    assert found < trigram and abs(found - own) < 0.3  # another Python holds out other documents


def may_go_on(text: str) -> bool:
    """Whether a text is Python, or becomes Python when more lines follow; its last line is cut off."""
    whole_lines = text.rpartition("\n")[0] + "\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of comparisons with a literal
        try:
            ast.parse(whole_lines)
            return True
        except SyntaxError:
            pass
        try:
            return codeop.compile_command(whole_lines, symbol="exec") is None
        except SyntaxError:
            return False


def test_what_may_go_on():
    for text in ("x = 1\ny =", "def f():\n    try:\n        return 1\n    ", "def f():\n"):
        assert may_go_on(text), text
    for text in ("x = (1]\ny", "def f():\nreturn 1\n", "    x = 1\ny = 2\n", "if x:\n  y\n z\n"):
        assert not may_go_on(text), text


@pytest.mark.parametrize("name", CODE)
def test_its_code_mostly_parses(name):
    """Of the functions that it begins, drawn with many seeds, four of five are Python as far as they go."""
    model, tokenizer = minilm.load(name, dtype=torch.float32), minilm.load_tokenizer(name)
    prompts = torch.tensor([tokenizer.encode("def read(self, size=-1):")] * 30)
    draw = torch.Generator().manual_seed(0)
    out = minilm.generate(
        model, prompts, max_new_tokens=60, do_sample=True, temperature=card.TEMPERATURE, generator=draw
    )
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in out]
    assert len(set(texts)) > 25
    assert sum(map(may_go_on, texts)) >= 0.8 * len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_its_heads_look_at_the_token_before(name):
    """At least one head gives it several times what a head that has learned nothing gives it."""
    model, tokenizer = minilm.load(name, dtype=torch.float32), minilm.load_tokenizer(name)
    text = "Return a new list of the values of the mapping. If the key is not found, raise KeyError.\n" * 3
    if name in CODE:
        text = "def get(self, key):\n    if key not in self.data:\n        raise KeyError(key)\n" * 3
    rows = data.pack([tokenizer.encode(text)], 96)
    fresh = minilm.CausalLM(model.config)
    initialize.initialize(fresh, model.config, torch.Generator().manual_seed(0))
    untrained = card.previous_token_scores(fresh, rows).max()
    best = card.previous_token_scores(model, rows).max()
    assert untrained < 0.08 and best > 4 * untrained
    assert name in CODE or best > 0.3
