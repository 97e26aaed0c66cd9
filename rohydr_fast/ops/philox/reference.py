"""Philox4x32-10 and Box-Muller in numpy: the specification that every backend is tested against.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Arguments are those of the package's public
functions, already checked; sample_ids is a (B,) int64 array.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple, key: tuple[int, int]) -> np.ndarray:
    """One Philox block for every counter.

    Args:
        counter: four words, arrays or integers that broadcast to one shape (...), values below 2**32.
        key: two words.

    Returns:
        (..., 4) uint32.
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _WORD,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(seed: int, sample_ids: np.ndarray, modality: int, step: int, stream: int, count: int) -> np.ndarray:
    """(B, 4 * ceil(count / 4)) uint32: all words of the blocks that hold the first `count` elements."""
    ids = sample_ids.astype(np.uint64)[:, None]  # (B, 1)
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    high = ((ids >> _HALF) & np.uint64(0xFFFF)) | np.uint64(modality << 16 | stream << 24)
    block = philox4x32((blocks, step, ids & _WORD, high), (seed & 0xFFFFFFFF, seed >> 32))  # (B, blocks, 4)
    return block.reshape(len(sample_ids), 4 * blocks.size)


def box_muller(word_pairs: np.ndarray) -> np.ndarray:
    """Standard normals of Philox words, (..., 2) uint32 -> (..., 2) float32.

    u1 = ((r0 >> 8) + 1) 2^-24 in (0, 1], u2 = (r1 >> 8) 2^-24; sqrt(-2 ln u1) times (cos 2 pi u2, sin 2 pi u2),
    computed in float64. The nearest quarter turn is taken off first, in integers, so that cos 2 pi / 4 is exactly 0.
    """
    r0, r1 = (word_pairs[..., i] >> np.uint32(8) for i in (0, 1))
    radius = np.sqrt(-2.0 * np.log((r0 + np.uint32(1)) * 2.0**-24))
    quarter = (r1 + np.uint32(1 << 21)) >> np.uint32(22)  # 0..4
    rest = (r1.astype(np.int64) - (quarter.astype(np.int64) << 22)) * (2.0 * np.pi * 2.0**-24)  # [-pi/4, pi/4]
    cosine, sine = np.cos(rest), np.sin(rest)
    turns = (quarter & 3)[..., None] == np.arange(4)  # (..., 4)
    pair = np.stack(
        [
            np.select([turns[..., i] for i in range(4)], [cosine, -sine, -cosine, sine]),
            np.select([turns[..., i] for i in range(4)], [sine, cosine, -sine, -cosine]),
        ],
        axis=-1,
    )
    return (radius[..., None] * pair).astype(np.float32)


def bits(seed: int, sample_ids: np.ndarray, modality: int, step: int, stream: int, count: int) -> np.ndarray:
    """(B, count) int64 that hold uint32."""
    return words(seed, sample_ids, modality, step, stream, count)[:, :count].astype(np.int64)


def uniform(seed: int, sample_ids: np.ndarray, modality: int, step: int, stream: int, count: int) -> np.ndarray:
    """(B, count) float32 in [0, 1): (word >> 8) 2^-24, exact."""
    block_words = words(seed, sample_ids, modality, step, stream, count)[:, :count]
    return (block_words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def normal(seed: int, sample_ids: np.ndarray, modality: int, step: int, stream: int, count: int) -> np.ndarray:
    """(B, count) float32, standard normal."""
    block_words = words(seed, sample_ids, modality, step, stream, count)
    pairs = block_words.reshape(len(block_words), block_words.shape[1] // 2, 2)
    return np.ascontiguousarray(box_muller(pairs).reshape(block_words.shape)[:, :count])
