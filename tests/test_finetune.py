"""Fine-tuning a classifier: its data, its baselines, its batches, and that it learns what counting cannot."""

import json
import random

import pytest
import torch
import transformers
from test_cli import minilm_command  # noqa: F401  a fixture

import minilm
from minilm import finetune
from minilm.finetune import Examples
from minilm.train import Recipe


def test_sentences_are_prose():
    text = (
        "A short one.  This sentence has more than six plain words. x = f(a) + g(b) - h(c) * k(d) of it.\n\n"
        "This one goes\nover two lines of the text. and this one begins in lower case somewhere."
    )
    assert list(finetune.sentences(text)) == [
        "This sentence has more than six plain words.",
        "This one goes over two lines of the text.",
    ]


def test_word_order_exchanges_two_inner_neighbours():
    """Each sentence twice, with the same words, so that no bag of words can tell them apart."""
    documents = [f"The number {word} stands here among some other words." for word in ("one", "two", "ten")]
    examples = finetune.word_order([*documents, documents[0]])
    assert len(examples) == 6 and examples.labels == [0, 0, 0, 1, 1, 1] and examples.commonest == 0.5
    for written, exchanged in zip(examples.texts[:3], examples.texts[3:], strict=True):
        a, b = written.split(), exchanged.split()
        places = [i for i in range(len(a)) if a[i] != b[i]]
        assert sorted(a) == sorted(b) and len(places) == 2 and places[1] == places[0] + 1
        assert places[0] > 0 and places[1] < len(a) - 1
    assert finetune.word_order(documents).texts == examples.texts


def test_counting_words_learns_words_and_not_their_order():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=6)) for _ in range(400)]
    has_a = Examples(texts, [int("a" in text) for text in texts], ("no", "yes"))
    assert finetune.ngram_accuracy(has_a, has_a) > 0.95
    pairs = [text.replace(" ", "") for text in texts]
    ordered = Examples(texts, [int("ab" in text) for text in pairs], ("no", "yes"))
    assert finetune.ngram_accuracy(ordered, ordered, order=2) > 0.98
    shuffled = Examples(["a b", "b a"] * 50, [0, 1] * 50, ("no", "yes"))
    assert finetune.ngram_accuracy(shuffled, shuffled, order=1) == 0.5
    assert finetune.ngram_accuracy(shuffled, shuffled, order=2) == 1.0


def test_batches_hold_every_text_once():
    examples = Examples(["x" * (1 + i % 40) for i in range(50)], [0] * 50, ("a",))
    first, again, other = (list(finetune.batches(examples, 8, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(i for group in first for i in group) == list(range(50))


def test_padding_does_not_change_a_score():
    """Texts of unlike length together, and one by one."""
    model = minilm.load("tiny-qwen2", task="sequence-classification", dtype=torch.float32)
    tokenizer = minilm.load_tokenizer("tiny-qwen2")
    texts = ["Return the value.", "The assert statement is a convenient way to insert assertions.", "No"]
    together = finetune.predict(model, tokenizer, texts, 64)
    alone = torch.cat([finetune.predict(model, tokenizer, [text], 64) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_files_of_labelled_texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [{"text": f"text {i}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    train, held_out = finetune.load_examples(str(path))
    assert train.names == held_out.names == ("bad", "good") and len(train) + len(held_out) == 60
    assert all(train.names[label] == lines[int(text.split()[1])]["label"]
               for text, label in zip(train.texts, train.labels, strict=True))  # fmt: skip
    path.write_text('{"text": "a", "label": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2 is 'nonsense'; each line must be"):
        finetune.load_examples(str(path))
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n')
    with pytest.raises(ValueError, match="has 1 labels; a classifier needs two or more"):
        finetune.load_examples(str(path))
    with pytest.raises(ValueError, match="there is no file 'absent'; give word-order or"):
        finetune.load_examples("absent")


def test_it_learns_an_order_that_counting_cannot():
    """Which of two words comes first: a few dozen steps from the shipped trunk, beside half by counting."""
    draw = random.Random(0)
    pairs = [draw.sample(["value", "list", "name", "file", "string"], 2) for _ in range(300)]
    texts = [f"The {a} and the {b}" for a, b in pairs]
    examples = Examples(texts, [int(a > b) for a, b in pairs], ("up", "down"))
    model = minilm.load("tiny-qwen2", task="sequence-classification", dtype=torch.float32)
    tokenizer = minilm.load_tokenizer("tiny-qwen2")
    recipe = Recipe(steps=60, rows=16, micro_rows=16, length=32, lr=1e-3, warmup=5)
    losses = list(finetune.finetune(model, tokenizer, examples, recipe))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert finetune.ngram_accuracy(examples, examples) < 0.75
    assert finetune.accuracy(model, tokenizer, examples, 32) > 0.9


def test_the_command(minilm_command, tmp_path):  # noqa: F811
    """It tells the baselines, and writes what transformers loads to the same scores."""
    path, out = tmp_path / "texts.jsonl", tmp_path / "out"
    lines = [{"text": f"the number {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    ended = minilm_command("finetune", out, "--data", path, "--steps", 3, "--warmup", 1, "--rows", 4)
    assert ended.code == 0, ended
    assert "labels: even, odd" in ended.out and "the commonest label" in ended.out
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert theirs.config.id2label == {0: "even", 1: "odd"}
    ours = minilm.load(out, task="sequence-classification")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
