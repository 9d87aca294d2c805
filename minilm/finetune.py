"""Fine-tuning: a trained trunk, a new head, labelled texts. `python -m minilm finetune`.

The task that comes with it, `word-order`, asks whether two neighbouring words of a sentence were exchanged.
Which words a sentence has tells nothing about that, so a bag of words can only guess.
"""

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor, nn

from minilm import checkpoint, checks, data
from minilm.heads import SequenceClassifier
from minilm.tokenizer import Tokenizer, load_tokenizer
from minilm.train import Recipe, clip_gradients, learning_rate, make_optimizer

# ------------------------------------------------------------------------------------------------------------
# Labelled texts


@dataclass(frozen=True)
class Examples:
    """Texts, each with the index of its label."""

    texts: list[str]
    labels: list[int]
    names: tuple[str, ...]  # of the labels

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def commonest(self) -> float:
        """The accuracy of always giving the commonest label."""
        return Counter(self.labels).most_common(1)[0][1] / len(self)


def sentences(text: str) -> Iterator[str]:
    """Sentences of 6 to 24 words, most of which are plain words rather than code."""
    for paragraph in text.split("\n\n"):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            words = sentence.split()
            plain = [word for word in words if re.fullmatch(r"[A-Za-z][a-z'-]*[.,;:]?", word)]
            if 6 <= len(words) <= 24 and len(plain) >= 0.8 * len(words) and sentence[0].isupper():
                yield sentence


def exchange_words(sentence: str, draw: random.Random) -> str:
    """The sentence with two neighbours exchanged, but not the first or the last word: they would show it."""
    words = sentence.split()
    places = [i for i in range(1, len(words) - 2) if words[i] != words[i + 1]]
    place = draw.choice(places)
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def word_order(documents: Sequence[str]) -> Examples:
    """Each sentence twice: as it stands, and with two words exchanged."""
    texts = list(dict.fromkeys(itertools.chain.from_iterable(map(sentences, documents))))
    changed = [exchange_words(text, random.Random(text)) for text in texts]
    labels = [0] * len(texts) + [1] * len(texts)
    return Examples(texts + changed, labels, ("as written", "exchanged"))


def read_examples(path: Path) -> tuple[Examples, Examples]:
    """Training and held-out examples of a file with {"text": …, "label": …} on each line.

    Raises: ValueError with the line that is none, and where fewer than two labels occur.
    """
    pairs = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["text"], str) or not entry["text"].strip():
                raise ValueError("there is no text")
            pairs[entry["text"]] = str(entry["label"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number} is {line[:60]!r}; each line must be {{"text": "…", "label": "…"}}'
            ) from None
    names = tuple(sorted(set(pairs.values())))
    if len(names) < 2:
        raise ValueError(f"{path} has {len(names)} labels; a classifier needs two or more")
    parts = data.split_held_out({text: text for text in pairs})
    return tuple(Examples(part, [names.index(pairs[text]) for text in part], names) for part in parts)


def load_examples(source: str) -> tuple[Examples, Examples]:
    """Training and held-out examples: the task word-order, or a file."""
    if source == "word-order":
        # The documents that no shipped model was trained on are the ones that are held out here too.
        return tuple(map(word_order, data.split_held_out(data.read_corpus(["topics"]))))
    if not Path(source).is_file():
        raise ValueError(f"there is no file {source!r}; give word-order or a .jsonl file")
    return read_examples(Path(source))


# ------------------------------------------------------------------------------------------------------------
# What a model must beat


def ngram_accuracy(train: Examples, held_out: Examples, order: int = 1, steps: int = 200) -> float:
    """How often logistic regression on the counts of up to `order` words in a row is right."""

    def grams(text: str) -> Counter[str]:
        words = text.lower().split()
        return Counter(
            " ".join(words[i : i + size])
            for size in range(1, order + 1)
            for i in range(len(words) - size + 1)
        )

    counted = Counter(gram for text in train.texts for gram in grams(text))
    index = {gram: i for i, gram in enumerate(gram for gram, count in counted.items() if count > 1)}

    def bags(examples: Examples) -> tuple[Tensor, Tensor]:
        """The known grams of all texts one after the other, and where each text begins."""
        known = [[index[gram] for gram in grams(text).elements() if gram in index] for text in examples.texts]
        starts = itertools.accumulate(map(len, known[:-1]), initial=0)
        return torch.tensor(list(itertools.chain.from_iterable(known))), torch.tensor(list(starts))

    # A table with a row of scores per gram; a text's scores are the sum of its grams' rows.
    scores = nn.EmbeddingBag(len(index), len(train.names), mode="sum")
    nn.init.zeros_(scores.weight)
    optimizer = torch.optim.AdamW(scores.parameters(), lr=0.05, weight_decay=0.1)
    bag, labels = bags(train), torch.tensor(train.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores(*bag), labels).backward()
        optimizer.step()
    with torch.no_grad():
        guesses = scores(*bags(held_out)).argmax(dim=-1)
    return (guesses == torch.tensor(held_out.labels)).float().mean().item()


# ------------------------------------------------------------------------------------------------------------
# Fine-tuning


def make_batch(
    texts: Sequence[str], tokenizer: Tokenizer, longest: int
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids padded on the right, and the mask of what is real; a text that is too long loses its end."""
    rows = [tokenizer.encode(text)[:longest] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id or 0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def batches(examples: Examples, rows: int, seed: int) -> Iterator[list[int]]:
    """Every example once: in a random order, those of a batch of about the same length."""
    draw = random.Random(seed)
    order = sorted(range(len(examples)), key=lambda i: len(examples.texts[i]) + draw.uniform(0, 10))
    groups = [order[first : first + rows] for first in range(0, len(order), rows)]
    draw.shuffle(groups)
    return iter(groups)


def finetune(
    model: SequenceClassifier, tokenizer: Tokenizer, examples: Examples, recipe: Recipe
) -> Iterator[float]:
    """Do recipe.steps updates of recipe.rows examples; give the loss of each."""
    optimizer = make_optimizer(model, recipe)
    epochs = (batches(examples, recipe.rows, recipe.seed + epoch) for epoch in itertools.count())
    model.train()
    for step, chosen in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        ids, mask = make_batch([examples.texts[i] for i in chosen], tokenizer, recipe.length)
        labels = torch.tensor([examples.labels[i] for i in chosen])
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        clip_gradients(model, recipe.clip)
        optimizer.step()
        yield loss.item()
    model.eval()


@torch.no_grad()
def predict(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: Sequence[str], longest: int, rows: int = 64
) -> Float[Tensor, "texts labels"]:
    """The scores of each label for each text."""
    parts = [texts[first : first + rows] for first in range(0, len(texts), rows)]
    scores = []
    for part in parts:
        ids, mask = make_batch(part, tokenizer, longest)
        scores.append(model(ids, attention_mask=mask).logits.float())
    return torch.cat(scores)


def accuracy(model: SequenceClassifier, tokenizer: Tokenizer, examples: Examples, longest: int) -> float:
    """How often the best label is the right one."""
    guesses = predict(model, tokenizer, examples.texts, longest).argmax(dim=-1)
    return (guesses == torch.tensor(examples.labels)).float().mean().item()


# ------------------------------------------------------------------------------------------------------------
# The command


def command(
    directory: Annotated[Path, typer.Argument(help="Where the classifier goes.")],
    start: Annotated[str, typer.Option(help="The trained model to begin with.")] = "tiny-qwen2",
    text: Annotated[
        str, typer.Option("--data", help='word-order, or a file of lines {"text": …, "label": …}.')
    ] = "word-order",
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 1500,
    rows: Annotated[int, typer.Option(help="Texts of an update.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of a text; a longer one loses its end.")] = 128,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 3e-4,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = 50,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31, help="Of the new head and of the order of the texts.")
    ] = 0,
) -> None:
    """Teach a trained model to label texts, beside what counting words achieves.

    Writes a Hugging Face directory that transformers' AutoModelForSequenceClassification loads.
    """
    from tqdm import tqdm

    recipe = Recipe(steps=steps, rows=rows, micro_rows=rows, length=length, lr=lr, warmup=warmup, seed=seed)
    checks.require(
        not directory.exists() or directory.is_dir(), f"{directory} is a file; give a directory for the model"
    )
    train, held_out = load_examples(text)
    print(f"{len(train):,} texts to learn from, {len(held_out):,} held out; labels: {', '.join(train.names)}")
    torch.manual_seed(seed)  # for the new head
    model = checkpoint.load(
        start, task="sequence-classification", num_labels=len(train.names), dtype=torch.float32
    )
    model.config = model.config.replace(label_names=train.names)
    tokenizer = load_tokenizer(start)
    with tqdm(finetune(model, tokenizer, train, recipe), total=steps, unit="step") as bar:
        for loss in bar:
            bar.set_postfix_str(f"loss {loss:.3f}")
    checkpoint.save(model, directory, also=tokenizer.save)
    scores = {
        "the commonest label": held_out.commonest,
        "words counted": ngram_accuracy(train, held_out, 1),
        "words and pairs of words counted": ngram_accuracy(train, held_out, 2),
        f"{Path(start).name}, fine-tuned": accuracy(model, tokenizer, held_out, length),
    }
    print("right on held-out texts:")
    for name, share in scores.items():
        print(f"  {name:34} {share:.1%}")
