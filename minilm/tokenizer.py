"""Text to token ids and back, for any checkpoint: a thin cover over the tokenizers that transformers
loads.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

from torch import Tensor

from minilm import checks
from minilm.checkpoint import CheckpointError, resolve

# How GGUF files name the rule that cuts text into words before merging; each is built by _pre_tokenizer.
_WORD_PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Tokenizer:
    """The tokenizer of a checkpoint."""

    def __init__(self, fast):
        self._fast = fast  # a transformers PreTrainedTokenizerFast

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return len(self._fast)

    @property
    def eos_token_id(self) -> int | None:
        return self._fast.eos_token_id

    @property
    def pad_token_id(self) -> int | None:
        return self._fast.pad_token_id

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint was trained for conversations and says how to write them down."""
        return self._fast.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that the model was trained to see around it."""
        checks.require(isinstance(text, str), f"text is {checks.shown(text)}; give one string")
        return self._fast.encode(text)

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """The text of a row of ids. Bytes that do not form a character yet become U+FFFD."""
        return self._fast.decode(_to_list(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Sequence[int] | Tensor) -> list[str]:
        """The text of each id by itself, as labels for a plot."""
        return [self._fast.decode([index]) for index in _to_list(ids)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of the text that each of its ids stands for: first, and one past the last."""
        return self._fast(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def require_chat_template(self) -> None:
        """Raise ValueError if the checkpoint was not trained for conversations."""
        if not self.has_chat_template:
            raise ValueError(
                "this checkpoint has no chat template: it was trained to continue text, not to answer. "
                "Use encode(text) (python -m minilm generate), or an Instruct checkpoint"
            )

    def apply_chat_template(
        self, messages: Iterable[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation, written as the model was trained to read it and ready for its next
        answer.

        messages: dictionaries with "role" ("system", "user" or "assistant") and "content".
        """
        self.require_chat_template()
        messages = _checked(messages)
        from jinja2 import TemplateError  # transformers needs it for templates too

        try:
            return self._fast.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise ValueError(
                f"the checkpoint's chat template does not take this conversation ({error}); ask in the order "
                "that it was trained on, or mend chat_template.jinja"
            ) from None

    def save(self, directory: str | os.PathLike) -> None:
        """Write tokenizer.json and its settings, as transformers reads them."""
        Path(directory).mkdir(parents=True, exist_ok=True)  # transformers would not write, and not say so
        self._fast.save_pretrained(directory)


def _to_list(ids: Sequence[int] | Tensor) -> list[int]:
    """The ids of one row as integers; refuses what is none, such as the -100 of labels."""
    found = ids.tolist() if isinstance(ids, Tensor) else ids
    if isinstance(found, Iterable) and not isinstance(found, str | bytes):
        found = [each.item() if isinstance(each, Tensor) and each.ndim == 0 else each for each in found]
        if all(isinstance(each, Integral) and 0 <= each < 2**31 for each in found):
            return found
    raise ValueError(f"ids are {checks.shown(found)}; give one row of integers, each 0 or more")


def _checked(messages: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation as a list; refuses what a template would write down as something else."""
    found = list(messages) if isinstance(messages, Iterable) and not isinstance(messages, str) else []
    for each in found or [messages]:
        fits = isinstance(each, dict) and all(isinstance(each.get(key), str) for key in ("role", "content"))
        if not found or not fits:
            raise ValueError(
                f'a message is {checks.shown(each)}; give a list of one or more dictionaries with "role" '
                '("system", "user" or "assistant") and "content", both strings'
            )
    return found


def load_tokenizer(source: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a checkpoint: a directory, a Hub name, a .gguf file or "smollm2"."""
    path = resolve(source)
    if path.is_file():
        return Tokenizer(_from_gguf(path))
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((path / name).is_file() for name in names):
        raise CheckpointError(
            f"{path} has no tokenizer ({', '.join(names)}); copy one there from the original model"
        )
    from transformers import AutoTokenizer  # imported here: it takes seconds, and computing does not need it

    try:
        # Without the last argument, a directory could ask whether to run code of its own.
        return Tokenizer(AutoTokenizer.from_pretrained(path, trust_remote_code=False))
    except Exception as error:  # the parsers of many formats raise many kinds, all meaning a broken file
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the tokenizer in {path} cannot be read ({reason}); copy it again from the original model"
        ) from None


def _pre_tokenizer(name: str):
    from tokenizers import Regex, pre_tokenizers

    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(_WORD_PATTERNS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _from_gguf(path: Path):
    """Build the byte-level BPE tokenizer that a GGUF file describes: its tokens, its merges, how it cuts
    words.
    """
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as RustTokenizer
    from transformers import PreTrainedTokenizerFast

    from minilm import gguf_reader

    value = functools.partial(gguf_reader.metadata, gguf_reader.open_file(path))
    kind, cut = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")
    known = ("gpt-2", "smollm", *_WORD_PATTERNS)
    if kind != "gpt2" or cut not in known:
        raise CheckpointError(
            f"{path} has a {kind!r} tokenizer whose rule for cutting words (tokenizer.ggml.pre) is {cut!r}; "
            f"from GGUF only byte-level BPE (gpt2) with the rules {', '.join(known)} is read. "
            "Use the tokenizer of the model's Hugging Face directory"
        )
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = value("tokenizer.ggml.merges")
    if tokens is None or types is None or merges is None:
        raise CheckpointError(
            f"{path} does not hold a whole tokenizer: tokens, token types and merges are needed. "
            "Use the tokenizer of the model's Hugging Face directory"
        )
    merges = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = RustTokenizer(models.BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(cut), decoders.ByteLevel()
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    control, user_defined = 3, 4  # llama.cpp's kinds of tokens that text is never merged into
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (control, user_defined):
            tokenizer.add_tokens([AddedToken(token, special=token_type == control, normalized=False)])

    def token(name: str) -> str | None:
        index = value(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    bos, eos = token("bos"), token("eos")
    # Where the file does not say, llama.cpp puts the beginning-of-text token before every text of Llama 3.
    before = [bos] if bos and value("tokenizer.ggml.add_bos_token", cut == "llama-bpe") else []
    after = [eos] if eos and value("tokenizer.ggml.add_eos_token", False) else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(name, vocabulary[name]) for name in {*before, *after}],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=token("padding"),
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
