"""Text as it is generated: whoever wants the tokens one by one, and who prints them."""

import io
import sys
from typing import Protocol, TextIO, runtime_checkable

from torch import Tensor

from minilm.tokenizer import Tokenizer


@runtime_checkable
class Streamer(Protocol):
    """Whoever wants the tokens as they come: first the prompt, then one token per row and step."""

    def put(self, ids: Tensor) -> None: ...

    def end(self) -> None: ...


class TextStreamer:
    """Prints one row's new text as soon as its characters are complete; the prompt itself is not repeated."""

    def __init__(self, tokenizer: Tokenizer, file: TextIO | io.StringIO | None = None):
        self.tokenizer, self.file = tokenizer, file
        self._start()

    def _start(self) -> None:
        self.before: list[int] | None = None  # the end of the prompt: it decides whether a space follows
        self.ids: list[int] = []
        self.printed = 0

    def put(self, ids: Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if self.before is None:
            if ids.shape[0] != 1:
                raise ValueError(f"a TextStreamer prints one row, not {ids.shape[0]}; stream rows one by one")
            self.before = ids[0, -4:].tolist()
            return
        self.ids += ids.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):  # a character of several bytes may be half there
            self._write(text)

    def end(self) -> None:
        """Print what is left, and a new line."""
        self._write(self._text() + "\n")
        self._start()

    def _text(self) -> str:
        """The new text: what the tokens add to the end of the prompt."""
        before = self.before or []
        together = self.tokenizer.decode(before + self.ids, skip_special_tokens=True)
        return together[len(self.tokenizer.decode(before, skip_special_tokens=True)) :]

    def _write(self, text: str) -> None:
        print(text[self.printed :], end="", flush=True, file=self.file or sys.stdout)
        self.printed = len(text)
