"""Text to train on: where it comes from, how it is cut into tokens, and how documents share a row.

Every Python carries two corpora: `topics`, English about Python (the language reference of `pydoc` and the
docstrings of the standard library), and `stdlib`, Python itself (the standard library's code without them).
"""

import ast
import hashlib
import json
import random
import re
import sysconfig
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minilm import masks
from minilm.loss import IGNORED
from minilm.tokenizer import Tokenizer

END = "<|endoftext|>"  # stands before and after every document
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<fim_prefix>", "<fim_middle>", "<fim_suffix>"
HELD_OUT = 0.05  # the share of the documents that is never trained on
LONG_FILE = 20_000  # characters; a longer text is cut at blank lines, so that a part can be held out
# Parts of the standard library that are tables, tests or programs of their own rather than a library.
SKIPPED = frozenset(
    """test tests idlelib lib2to3 turtledemo ensurepip encodings pydoc_data site-packages dist-packages
    __pycache__""".split()
)

Documents = dict[str, str]  # name -> text, in the order of the names


# ------------------------------------------------------------------------------------------------------------
# Corpora


def clean(text: str) -> str:
    """The text without tabs, trailing blanks and runs of empty lines."""
    text = re.sub(r"[ \t]+\n", "\n", text.expandtabs())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def library_files() -> Iterator[tuple[str, Path]]:
    """The modules of the standard library, by their dotted names in alphabetical order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        generated = parts[0].startswith(("config-", "_sysconfigdata"))
        if not SKIPPED & set(parts) and not generated:
            yield ".".join(parts).removesuffix(".py").removesuffix(".__init__"), path


def bare_code(source: str) -> str:
    """A module's code without docstrings and comments, laid out as `ast.unparse` does.

    The English among the code is a language of its own; a small model has no room for both.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return clean(ast.unparse(tree))


def library_sources() -> Documents:
    """The `stdlib` corpus: the code of each module."""
    sources = {name: bare_code(path.read_text(encoding="utf-8")) for name, path in library_files()}
    return {name: code for name, code in sources.items() if code.strip()}


def describe_module(name: str, source: str, seen: set[str]) -> str:
    """What `help` would tell about a module: its docstring, then each signature with its own.

    seen: docstrings that need not be told again; it grows.
    """
    parts = []

    def visit(node: ast.AST, place: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_class = isinstance(child, ast.ClassDef)
            arguments = ", ".join(map(ast.unparse, child.bases)) if is_class else ast.unparse(child.args)
            tell(child, f"{'class ' if is_class else ''}{place}{child.name}({arguments})")
            visit(child, f"{place}{child.name}.")

    def tell(node: ast.AST, title: str) -> None:
        text = ast.get_docstring(node)
        if text and text not in seen:
            seen.add(text)
            parts.append(f"{title}\n{textwrap.indent(text, '    ')}\n")

    tree = ast.parse(source)
    tell(tree, f"module {name}")
    visit(tree, "")
    return clean("\n".join(parts))


def library_topics() -> Documents:
    """The `topics` corpus: the chapters of the language reference, and the docstrings of each module."""
    from pydoc_data.topics import topics

    documents = {f"topic {name}": clean(text) for name, text in sorted(topics.items())}
    seen: set[str] = set()
    for name, path in library_files():
        text = describe_module(name, path.read_text(encoding="utf-8"), seen)
        if text.strip():
            documents[f"module {name}"] = text
    return documents


def read_files(paths: Sequence[Path]) -> Documents:
    """Text files, and all files of folders that are text, but for hidden ones and folders named SKIPPED."""
    documents: Documents = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no {path}; give text files, folders, or one of {', '.join(CORPORA)}")
        names = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for name in names:
            inside = name.relative_to(path).parts
            if any(part.startswith(".") or part in SKIPPED for part in inside):
                continue
            try:
                text = name.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                if path.is_file():
                    raise ValueError(f"{path} is not UTF-8 text") from None
                continue  # a picture among the files of a folder
            if text.strip() and "\0" not in text:
                documents |= cut_long(str(name), clean(text))
    return documents


def cut_long(name: str, text: str) -> Documents:
    """A text as one document, or as several that end at blank lines where it is long."""
    parts, size = [[]], 0
    for paragraph in text.split("\n\n"):
        if size > LONG_FILE:
            parts, size = [*parts, []], 0
        parts[-1].append(paragraph)
        size += len(paragraph)
    return {f"{name}#{index}": "\n\n".join(part) for index, part in enumerate(parts)}


CORPORA = {"topics": library_topics, "stdlib": library_sources}


def read_corpus(source: Sequence[str]) -> Documents:
    """The documents of a named corpus, or of files and folders."""
    if not source:
        raise ValueError(f"no text was named; give text files, folders, or one of {', '.join(CORPORA)}")
    documents = CORPORA[source[0]]() if list(source) in [[name] for name in CORPORA] else None
    if documents is None:
        documents = read_files([Path(name).expanduser() for name in source])
    if len(documents) < 2:
        raise ValueError(
            f"{' '.join(source)} holds {len(documents)} documents; at least two are needed, "
            "for one is held out"
        )
    return documents


def split_held_out(documents: Documents) -> tuple[list[str], list[str]]:
    """Texts to train on and texts to test on. A document's name decides, so additions move no other."""

    def draw(name: str) -> float:
        return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32

    least = min(documents, key=draw)
    held_out = {name for name in documents if draw(name) < HELD_OUT} or {least}
    train = [text for name, text in documents.items() if name not in held_out]
    return train, [text for name, text in documents.items() if name in held_out]


# ------------------------------------------------------------------------------------------------------------
# Tokens


def word_rules(model_type: str | None) -> tuple:
    """How a text is normalised and cut into words before merging: the rules that will hold when it is read.

    They stand in tokenizer.json, but beside the config.json of some types of models transformers puts its own
    in their place. A tokenizer that learned with other rules would then cut every text in an odd way.
    """
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = RustTokenizer(models.BPE())
    ours.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if model_type is None:
        return ours.normalizer, ours.pre_tokenizer
    with tempfile.TemporaryDirectory() as directory:
        PreTrainedTokenizerFast(tokenizer_object=ours).save_pretrained(directory)
        Path(directory, "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        read = AutoTokenizer.from_pretrained(directory).backend_tokenizer
    return read.normalizer, read.pre_tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_type: str | None = None) -> Tokenizer:
    """Byte-level BPE: any text can be written, and what occurs often becomes one token.

    Ids: the special tokens, then the 256 bytes, then the merges in the order in which they were learned.
    model_type: of the config.json that will lie beside it; see word_rules.
    Source: Sennrich et al. 2016; bytes in place of characters, GPT-2, 2019.
    """
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX]
    if vocab_size < len(special) + 256:
        raise ValueError(
            f"a vocabulary of {vocab_size}; special tokens and bytes alone are {len(special) + 256}"
        )
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = word_rules(model_type)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=special[1:],
        clean_up_tokenization_spaces=False,
    )
    return Tokenizer(fast)


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Each text's ids between two end-of-text tokens."""
    end = tokenizer.eos_token_id
    return [[end, *tokenizer.encode(text), end] for text in texts]


def cut_lines(text: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
    """Pieces of at most `room` tokens: whole lines, cut at a blank one where it comes late enough.

    The indentation that all lines of a piece share is taken off, so that a method looks like a function: what
    begins a text stands at the left margin.
    """
    while text:
        spans = tokenizer.spans(text[: 12 * room])  # more characters than any piece has
        cut = spans[min(room, len(spans)) - 1][1]
        if cut < len(text):
            blank, line = text.rfind("\n\n", cut // 2, cut), text.rfind("\n", 0, cut)
            cut = blank + 2 if blank >= 0 else line + 1 if line >= 0 else cut
        yield textwrap.dedent(text[:cut])
        text = text[cut:]


def fill_in_the_middle(
    texts: Iterable[str], tokenizer: Tokenizer, length: int, rate: float = 0.5, seed: int = 0
) -> list[list[int]]:
    """Cut texts into pieces that fit a row, and put the middle of some of them last.

    A piece becomes <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle <|endoftext|>, cut at two
    random characters, so that a model that only reads forwards learns to fill a gap. The pieces are made
    before the cut: of a long document, a row would show one of its three parts alone.
    Source: Bavarian et al. 2022, §3 (PSM, characters, at the level of the context).
    """
    draw = random.Random(seed)
    prefix, middle, suffix, end = (
        tokenizer.encode(token)[0] for token in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, END)
    )
    if length < 32:
        raise ValueError(f"rows of {length} tokens; gaps to fill need 32 or more, 16 of them for its marks")
    room = length - 16  # four special tokens, and some where a token is cut in two or an indentation changes
    documents = []
    for text in texts:
        for part in cut_lines(text, tokenizer, room):
            if draw.random() >= rate:
                documents.append([end, *tokenizer.encode(part), end])
                continue
            low, high = sorted(draw.randint(0, len(part)) for _ in range(2))
            before, between, after = map(tokenizer.encode, (part[:low], part[low:high], part[high:]))
            documents.append([prefix, *before, suffix, *after, middle, *between, end])
    return documents


# ------------------------------------------------------------------------------------------------------------
# Packing


@dataclass(frozen=True)
class Rows:
    """Documents side by side in rows of one length. None of them sees another."""

    input_ids: Int[Tensor, "rows length"]
    documents: Int[Tensor, "rows length"]  # which document each token belongs to; -1 = padding

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: slice | Int[Tensor, " chosen"]) -> "Rows":
        return Rows(self.input_ids[index], self.documents[index])

    def to(self, device: torch.device | str) -> "Rows":
        """The same rows on another device."""
        return Rows(self.input_ids.to(device), self.documents.to(device))

    @property
    def starts(self) -> Bool[Tensor, "rows length"]:
        """Where a document begins, or goes on from an earlier row."""
        starts = torch.ones_like(self.documents, dtype=torch.bool)
        starts[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        return starts

    @property
    def position_ids(self) -> Int[Tensor, "rows length"]:
        """Places counted from 0 at the start of each document."""
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand_as(self.input_ids)
        return places - torch.where(self.starts, places, 0).cummax(dim=1).values

    @property
    def attention_mask(self) -> Bool[Tensor, "rows 1 length length"]:
        """Block-diagonal: each token sees those of its own document up to itself."""
        length = self.input_ids.shape[1]
        same = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return same & masks.causal_mask(length, length, self.documents.device)

    @property
    def labels(self) -> Int[Tensor, "rows length"]:
        """The ids, but IGNORED at padding and where the token before belongs to another document."""
        return self.input_ids.masked_fill(self.starts | (self.documents < 0), IGNORED)

    @property
    def targets(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels != IGNORED).sum())


def pack(documents: Sequence[Sequence[int]], length: int) -> Rows:
    """Lay documents end to end and cut the line into rows; the last one is padded.

    A document that does not fit goes on in the next row, where it has forgotten what came before.
    """
    if length < 2:
        raise ValueError(f"rows of {length} tokens; at least 2 are needed, for one predicts the next")
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.long)
    sizes = torch.tensor([len(document) for document in documents])
    owners = torch.arange(len(documents)).repeat_interleave(sizes)
    padding = -len(ids) % length
    ids = torch.nn.functional.pad(ids, (0, padding))
    owners = torch.nn.functional.pad(owners, (0, padding), value=-1)
    return Rows(ids.view(-1, length), owners.view(-1, length))


# ------------------------------------------------------------------------------------------------------------
# What a model must beat


class NGrams:
    """Counts of n tokens in a row: the best guess without a neural network.

    A context that was followed by many different tokens leaves more to the shorter context; the shortest
    leaves it to all tokens alike.
    Source: Witten-Bell smoothing, Chen & Goodman 1998, §2.5.
    """

    def __init__(self, rows: Rows, vocab_size: int, order: int = 3):
        self.vocab_size, self.order = vocab_size, order
        self.counts: Counter[tuple[int, ...]] = Counter()  # of each token after each context of fewer than n
        for context, token in self._targets(rows):
            for size in range(min(len(context), order - 1) + 1):
                self.counts[(*context[len(context) - size :], token)] += 1
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.kinds: Counter[tuple[int, ...]] = Counter()
        for gram, count in self.counts.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1

    def _targets(self, rows: Rows) -> Iterator[tuple[tuple[int, ...], int]]:
        """Each token that a model has to predict, and what it may look at, at most order - 1 tokens."""
        table = zip(rows.input_ids.tolist(), rows.labels.tolist(), rows.position_ids.tolist(), strict=True)
        for ids, labels, positions in table:
            for index, (label, position) in enumerate(zip(labels, positions, strict=True)):
                if label != IGNORED:
                    yield tuple(ids[index - min(position, self.order - 1) : index]), label

    def probability(self, context: tuple[int, ...], token: int, order: int) -> float:
        """P(token | the last order - 1 tokens of context)."""
        context = context[len(context) - min(len(context), order - 1) :]
        shorter = self.probability(context[1:], token, len(context)) if context else 1 / self.vocab_size
        if context not in self.totals:
            return shorter
        kinds = self.kinds[context]
        return (self.counts[(*context, token)] + kinds * shorter) / (self.totals[context] + kinds)

    def loss(self, rows: Rows, order: int) -> float:
        """Mean of −ln P over the tokens that a model would have to predict, in nats per token."""
        losses = [-log(self.probability(context, token, order)) for context, token in self._targets(rows)]
        return sum(losses) / len(losses)
