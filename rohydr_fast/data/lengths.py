"""Where the real tokens of each clip lie: from attention masks, given lengths, or rows that are not all zero."""

import numpy as np


def spans(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First position and length of what lies between the first and the last True of each row of a (N, T) array.

    Rows that are False in between count: a zero row inside a clip is a real token. Length 0 = nothing is True.
    """
    steps = content.shape[1]
    found = content.any(axis=1)
    first = np.argmax(content, axis=1)
    last = steps - 1 - np.argmax(content[:, ::-1], axis=1)
    return np.where(found, first, 0).astype(np.int64), np.where(found, last - first + 1, 0).astype(np.int64)


def spans_from_mask(mask: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`spans` of an attention mask (N, T); without content the length is 0, without a mask the content decides."""
    starts, lengths = spans(mask != 0)
    own_starts, own_lengths = spans(content)
    unmasked = lengths == 0
    starts[unmasked], lengths[unmasked] = own_starts[unmasked], own_lengths[unmasked]
    absent = own_lengths == 0
    starts[absent], lengths[absent] = 0, 0
    return starts, lengths


def spans_from_lengths(given: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Spans of given lengths (N,), which say how many rows are real but not on which side the padding lies.

    The real rows are the first ones, unless the content fits only into the last ones.

    Returns:
        starts, lengths (0 where all rows are zero), and the number of clips that have content outside.
    """
    steps = content.shape[1]
    starts, own = spans(content)
    ends = starts + own
    leads = (ends > given) & (starts >= steps - given)
    first = np.where(leads, steps - given, 0)
    lengths = np.where(own == 0, 0, given)
    outside = (own > 0) & ((starts < first) | (ends > first + lengths))
    return np.where(lengths == 0, 0, first).astype(np.int64), lengths.astype(np.int64), int(outside.sum())
