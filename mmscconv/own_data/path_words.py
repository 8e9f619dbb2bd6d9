"""The words of paths, which name splits and tell folders apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPLITS = ('train', 'val', 'test')
SYNONYMS = {'valid': 'val', 'validation': 'val', 'training': 'train', 'testing': 'test'}


def words(parts: Sequence[str]) -> set[str]:
    """Return the words and numbers in the parts of a path, 'train' and '2017' of 'train2017'."""
    found = re.findall(r'[a-z]+|\d+', ' '.join(parts).lower())
    return {SYNONYMS.get(word, word) for word in found}


def split_of(parts: Sequence[str]) -> str:
    """Return the split that a path names, such as 'train2017' or 'valid' in its innermost part; '' if it names none."""
    for part in reversed(parts):
        named = [name for name in SPLITS if name in words([part])]
        if len(named) == 1:
            return named[0]
    return ''


def told_apart(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two folders name different splits, or differ in numbers alone, as seq0 and seq1."""
    if len({split_of(one), split_of(other)} - {''}) > 1:
        return True
    if not one or not other or one[-1] == other[-1]:
        return False
    letters = [re.sub(r'\d+', '0', parts[-1]) for parts in (one, other)]
    return letters[0] == letters[1]
