"""Text and tokens: how many a prompt has and which, and filler of the right number for answers.

Tokens are told by the model's own ``tokenizer.json`` where one is given, else every four characters
are one. A chat is its messages one after the other, each between marks: so a later turn begins with
the very tokens of the turn before, its answer included, and finds them in the prefix cache.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import InputError
from scenarios.tokenizer_file import read_tokenizer

Ids = NDArray[np.int64]

_PIECE = 4  # characters of a token where no tokenizer is given
_LENGTH = 1 << 12  # words of the filler, after which it begins anew
_MARK = 1 << 40  # ids beyond any vocabulary: marks of a chat's messages
_START, _END = _MARK, _MARK + 1
_SEED = 0x6F726361
_ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x2545F4914F6CDD1D],
                np.uint64)  # fmt: skip


class Tokens(Protocol):
    """A tokenizer, as much of it as is needed."""

    name: str  # in words
    words: list[str]  # filler: each is one token, whatever it follows
    word_ids: Ids  # and these are their ids

    def ids(self, text: str) -> Ids:
        """The tokens of a text."""

    def strings(self, text: str) -> list[str]:
        """What each of them stands for."""


class Characters:
    """Four characters a token: near enough for English, and told to whoever asks."""

    name = "four characters a token"

    def __init__(self) -> None:
        syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
        ends = "nrslmt"
        self.words = [f" {one}{end}" for one in syllables for end in ends]
        self.word_ids = self.ids("".join(self.words))

    def ids(self, text: str) -> Ids:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        padded = np.zeros(-(-len(codes) // _PIECE) * _PIECE, np.uint64)
        padded[: len(codes)] = codes
        mixed = ((padded.reshape(-1, _PIECE) + np.uint64(1)) * _ODD).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        found: Ids = ((mixed * _ODD[0]) >> np.uint64(33)).astype(np.int64)
        return found

    def strings(self, text: str) -> list[str]:
        return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]


class FromFile:
    """A ``tokenizer.json`` of Hugging Face's, or a folder that has one. InputError for others."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer, file = read_tokenizer(path)
        except (ValueError, ModuleNotFoundError) as error:
            raise InputError(f"--tokenizer {error}") from None
        self.name = f"tokenizer {file}"
        self.words, self.word_ids = self._filler(path)

    def ids(self, text: str) -> Ids:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64)

    def strings(self, text: str) -> list[str]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return [text[start:end] for start, end in encoded.offsets]

    def _filler(self, path: Path) -> tuple[list[str], Ids]:
        """Words that are one token each, wherever they stand in a text of such words."""
        vocabulary = sorted(self._tokenizer.get_vocab().values())
        step = max(1, len(vocabulary) // 20_000)
        words, ids = [], []
        for token in vocabulary[::step]:
            plain = self._tokenizer.decode([token]).strip()
            word = f" {plain}"
            if plain.isascii() and plain.isalnum() and len(plain) <= 8:
                found = self.ids(f"{word}{word}").tolist()
                if len(found) == 2 and found[0] == found[1]:
                    words.append(word)
                    ids.append(found[0])
            if len(words) == 512:
                break
        if len(words) < 2 or self.ids("".join(words)).tolist() != ids:
            raise InputError(
                f"--tokenizer {path}: it has no words of one token each to answer with"
            )
        return words, np.array(ids, np.int64)


def chat_ids(tokens: Tokens, messages: Sequence[tuple[str, str]]) -> Ids:
    """The tokens of a chat, messages of (role, text), up to where its answer begins."""
    parts: list[Ids] = []
    for role, text in messages:
        parts += [_opening(role), tokens.ids(text), np.array([_END])]
    return np.concatenate([*parts, _opening("assistant")])


def _opening(role: str) -> Ids:
    return np.array([_START, _MARK + 2 + zlib.crc32(role.encode("utf-8", "replace"))], np.int64)


class Filler:
    """What answers say: one long sequence of words, drawn once, that each enters somewhere else."""

    def __init__(self, tokens: Tokens) -> None:
        rng = np.random.default_rng(_SEED)
        drawn = rng.integers(len(tokens.words), size=_LENGTH)
        self._words = [tokens.words[at] for at in drawn.tolist()] * 2
        self._encoded = [word.encode() for word in self._words]
        self._ids = np.tile(tokens.word_ids[drawn], 2)

    def text(self, place: int, start: int, stop: int) -> str:
        """Tokens `start` to `stop` - 1 of the answer that enters at `place`."""
        return self.encoded(place, start, stop).decode()

    def encoded(self, place: int, start: int, stop: int) -> bytes:
        """The same in UTF-8; JSON would escape none of it."""
        at = (place + start) % _LENGTH
        count = stop - start
        if count <= _LENGTH:
            return b"".join(self._encoded[at : at + count])
        rounds, rest = divmod(count, _LENGTH)
        return b"".join(self._encoded[at : at + _LENGTH]) * rounds + b"".join(
            self._encoded[at : at + rest]
        )

    def words(self, place: int, start: int, stop: int) -> list[str]:
        """The same, one by one."""
        return [self._words[(place + at) % _LENGTH] for at in range(start, stop)]

    def ids(self, place: int, count: int) -> Ids:
        """The tokens of an answer of so many."""
        at = place % _LENGTH
        return np.resize(self._ids[at : at + _LENGTH], count)
