"""Damaged copies of files: bytes set, inserted, deleted, copied and replaced, and two files grown together."""

import random
from collections.abc import Sequence

MOST_EDITS = 6


def mutant(originals: Sequence[bytes], words: Sequence[bytes], seed: int, number: int) -> tuple[int, bytes]:
    """Mutant `number` of `seed`: which original it was made from, and its bytes, of which there is at least one.

    Args:
        words: what means something in these files, and may come to stand anywhere.
    """
    generator = random.Random(seed << 32 | number)
    draw = generator.random
    base = int(draw() * len(originals))
    data = bytearray(originals[base])
    for _ in range(1 + int(draw() ** 2 * MOST_EDITS)):  # squared: often one, or hardly any would be accepted
        place, edit = int(draw() * len(data)), int(draw() * 6)
        if edit == 0:
            data[place : place + 1] = bytes([generator.getrandbits(8)])
        elif edit == 1:
            data.insert(place, generator.getrandbits(8))
        elif edit == 2:
            del data[place : place + 1 + generator.getrandbits(3)]
        elif edit == 3:
            start = int(draw() * len(data))
            data[place:place] = data[start : start + 1 + generator.getrandbits(6)]
        elif edit == 4:
            other = originals[int(draw() * len(originals))]
            data[place:] = other[min(place, int(draw() * len(other))) :]
        else:
            word = words[int(draw() * len(words))]
            data[place : place + len(word)] = word
    return base, bytes(data) or b"\0"
