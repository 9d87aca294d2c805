"""The small models that ship: transformers reads them, and they know more than counts of words tell."""

import functools
import re
from pathlib import Path

import pytest
import torch
import transformers

import minilm
from minilm import card, data, train

FOLDER = Path(minilm.__file__).parent / "checkpoints"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
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
    assert train.evaluate(model, rows[chosen]) < trigram


@pytest.mark.parametrize("name", NAMES)
def test_its_heads_look_at_the_token_before(name):
    """At least one head gives most of its attention there, which an untrained one cannot: it spreads it."""
    model, tokenizer = minilm.load(name, dtype=torch.float32), minilm.load_tokenizer(name)
    text = "Return a new list of the values of the mapping. If the key is not found, raise KeyError.\n" * 3
    rows = data.pack([tokenizer.encode(text)], 96)
    assert card.previous_token_scores(model, rows).max() > 0.3
