"""A small byte-level BPE tokenizer, trained where it is needed, and the files that it can be read from."""

import json
from pathlib import Path

import gguf
from reference import build_reference, randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = """The quick brown fox doesn't jump over 1234 lazy dogs; it's 2024, and they'll see 100% of 345 foxes.
In the year 2024 the fox said: "I'm here, you're there, we've all been in the year 1234."
    def main():\n        return 100 + 2024\n\n\n
Größe über alles, naïve café, déjà vu: the fox isn't 12 or 24 any more.  It   is   wide.\n\n"""
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train(pre_tokenizer: pre_tokenizers.PreTokenizer | None = None, vocab_size: int = 360) -> Tokenizer:
    """Learn merges from TEXT. The ids are: the special tokens, every byte, the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def save_tokenizer(directory: Path, chat: bool = True) -> PreTrainedTokenizerFast:
    """Write a tokenizer as Hugging Face directories hold it, and return transformers' own reading of it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train(),
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        chat_template=CHAT_TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def save_text_model(directory: Path, chat: bool = True, model_type: str = "llama") -> Path:
    """A checkpoint with a tokenizer whose ids fit: all that generating text needs."""
    fast = save_tokenizer(directory, chat)
    model = randomise(build_reference(model_type, vocab_size=len(fast), eos_token_id=0, pad_token_id=0))
    model.save_pretrained(directory)
    return directory


def write_gguf_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str | None) -> None:
    """Put a tokenizer into a GGUF file under llama.cpp's names, its special tokens marked as such."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
