"""Conversations: which clips were cut from the same video, and in what order, as their ids say."""

import re
from collections.abc import Sequence

import numpy as np

ID = re.compile(r"(?P<video>.+)\$_\$(?P<position>\d+)")
"""MMSA's clip ids, for example ``03bSnISJMiM$_$11``."""


def conversations(ids: Sequence[str]) -> np.ndarray | None:
    """(N, 2) int64: the number of each clip's conversation, in order of first appearance, and its position there.

    None where an id is not of MMSA's form, or no conversation has two clips: then there is no order to use.
    """
    found = [ID.fullmatch(clip) for clip in ids]
    if not all(found):
        return None
    numbers: dict[str, int] = {}
    rows = [(numbers.setdefault(one["video"], len(numbers)), int(one["position"])) for one in found]
    if len(numbers) == len(rows):
        return None
    return np.array(rows, np.int64).reshape(-1, 2)


def conversation_batches(conversation: np.ndarray, order: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of whole conversations: rows, sorted by position within a conversation.

    Conversations come as `order` (N,) first meets them. A batch is closed when the next conversation would lift it
    above `size` clips, so that only a conversation longer than `size` makes a larger one.
    """
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(conversation[row, 0]), []).append(int(row))
    batches: list[list[int]] = []
    for rows in members.values():
        rows.sort(key=lambda row: (conversation[row, 1], row))
        if not batches or len(batches[-1]) + len(rows) > size:
            batches.append([])
        batches[-1] += rows
    return [np.array(rows, np.int64) for rows in batches]
