// SPDX-License-Identifier: MIT
// The source of the normal kernels: box_muller.h, operation by operation and therefore bit by bit, on vectors with one
// Philox block in each 64-bit lane. A file for one instruction set defines ROHYDR_LANES and includes this.
//
// These files are compiled for more than the baseline, and the linker keeps one copy of an inline function for the
// whole program. So nothing here may leave an inline function or a template instance in the object file: all is in an
// anonymous namespace, and neither the standard library nor the functions of philox.h are called.
#include <cstdint>

#include "normal_kernels.h"

#if ROHYDR_LANES > 2
#include <immintrin.h>
#elif defined(ROHYDR_NEON_LANES)
#include <arm_neon.h>
#endif

namespace rohydr {
namespace {

typedef std::uint64_t Words __attribute__((vector_size(8 * ROHYDR_LANES)));
typedef double Doubles __attribute__((vector_size(8 * ROHYDR_LANES)));
typedef float Floats __attribute__((vector_size(4 * ROHYDR_LANES)));
typedef std::uint32_t HalfWords __attribute__((vector_size(4 * ROHYDR_LANES)));
typedef std::uint64_t UnalignedWords __attribute__((vector_size(8 * ROHYDR_LANES), aligned(4), may_alias));

// Lane l holds block kBlockOfLane[l] of a group, so that one interleaving within pairs of lanes brings the numbers of
// the first half of the blocks, and of the second half, into their order.
// product: the full product of the low halves of each lane. square_root: correctly rounded, as IEEE 754 asks.
// even_lanes: a0 b0 a2 b2 ..., odd_lanes: a1 b1 a3 b3 ...
// The 512-bit intrinsics are masked ones with all bits set, because the header of g++ 12 warns about the plain ones.
#if ROHYDR_LANES == 8
constexpr Words kBlockOfLane = {0, 4, 1, 5, 2, 6, 3, 7};
inline Words product(Words a, Words b) { return (Words)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b); }
inline Doubles square_root(Doubles x) { return (Doubles)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x); }
inline Words even_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14); }
inline Words odd_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15); }
#elif ROHYDR_LANES == 4
constexpr Words kBlockOfLane = {0, 2, 1, 3};
inline Words product(Words a, Words b) { return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline Doubles square_root(Doubles x) { return (Doubles)_mm256_sqrt_pd((__m256d)x); }
inline Words even_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 4, 2, 6); }
inline Words odd_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 1, 5, 3, 7); }
#else
constexpr Words kBlockOfLane = {0, 1};
#if defined(ROHYDR_NEON_LANES)
inline Words product(Words a, Words b) {
  return (Words)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
inline Doubles square_root(Doubles x) { return (Doubles)vsqrtq_f64((float64x2_t)x); }
#else
inline Words product(Words a, Words b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
// An instruction and no call where the file is compiled with -fno-math-errno.
inline Doubles square_root(Doubles x) { return Doubles{__builtin_sqrt(x[0]), __builtin_sqrt(x[1])}; }
#endif
inline Words even_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 2); }
inline Words odd_lanes(Words a, Words b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

inline Words all_lanes(std::uint64_t value) { return Words{} + value; }

// The numbers of a batch are drawn before the first is turned into normals: two loops whose turns are independent and
// short enough for the CPU to work on several at once, where one loop would wait for its long chain of operations.
constexpr std::int64_t kBatch = 8;

// Philox words in the low halves of lanes; the high halves hold rubbish, which product() does not read.
struct Blocks {
  Words word[4];
};

inline Blocks philox(Blocks counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const Words product0 = product(counter.word[0], all_lanes(0xD2511F53u));
    const Words product1 = product(counter.word[2], all_lanes(0xCD9E8D57u));
    counter = {{product1 >> 32 ^ counter.word[1] ^ key0, product1, product0 >> 32 ^ counter.word[3] ^ key1, product0}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The upper 24 bits of the words.
inline Words fraction(Words word) { return word >> 8 & 0xFFFFFFu; }

// box_muller.h halves a mantissa of sqrt(2) or more. Here the bits of sqrt(1/2) are taken off before the exponent is
// split from the mantissa, and added afterwards: the same m and exponent.
inline Doubles log_fraction(Words n) {
  constexpr std::uint64_t kTwo52Bits = 0x4330000000000000u;  // adds its low bits as an integer to 2^52
  constexpr std::uint64_t kSqrtHalfBits = 0x3FE6A09E667F3BCDu;
  constexpr std::uint64_t kOneBits = 0x3FF0000000000000u;
  const Doubles value = (Doubles)(n | kTwo52Bits) - 0x1p52;
  const Words shifted = (Words)value + (kOneBits - kSqrtHalfBits);
  const Doubles exponent = (Doubles)(shifted >> 52 | kTwo52Bits) - (0x1p52 + 1023 + 24);
  const Doubles m = (Doubles)((shifted & 0x000FFFFFFFFFFFFFu) + kSqrtHalfBits);
  const Doubles s = (m - 1.0) / (m + 1.0);
  const Doubles z = s * s;
  Doubles series = z * (1.0 / 13) + 1.0 / 11;
  series = series * z + 1.0 / 9;
  series = series * z + 1.0 / 7;
  series = series * z + 1.0 / 5;
  series = series * z + 1.0 / 3;
  series = series * z + 1.0;
  return exponent * 0.6931471805599453 + 2.0 * s * series;
}

inline void cos_sin_fraction(Words n, Doubles& cosine, Doubles& sine) {
  constexpr std::uint64_t kThreeTwo51Bits = 0x4338000000000000u;  // adds a signed integer to 3 * 2^51
  const Words quarter = (n + (1u << 21)) >> 22;
  const Doubles x = ((Doubles)(n - (quarter << 22) + kThreeTwo51Bits) - 0x1.8p52) * (6.283185307179586 * 0x1p-24);
  const Doubles z = x * x;
  Doubles s = z * (-1.0 / 39916800) + 1.0 / 362880;
  s = s * z + -1.0 / 5040;
  s = s * z + 1.0 / 120;
  s = s * z + -1.0 / 6;
  s = (s * z + 1.0) * x;
  Doubles c = z * (1.0 / 479001600) + -1.0 / 3628800;
  c = c * z + 1.0 / 40320;
  c = c * z + -1.0 / 720;
  c = c * z + 1.0 / 24;
  c = c * z + -1.0 / 2;
  c = c * z + 1.0;
  const auto swap = (quarter & 1u) != 0;
  cosine = (Doubles)((Words)(swap ? s : c) ^ ((quarter + 1u) & 2u) << 62);  // bit 1 becomes the sign
  sine = (Doubles)((Words)(swap ? c : s) ^ (quarter & 2u) << 62);
}

inline Words float_bits(Doubles value) {
  return __builtin_convertvector((HalfWords)__builtin_convertvector(value, Floats), Words);
}

// The two normals of each lane: the first in its low half, the second in its high half.
inline Words normal_pair(Words r0, Words r1) {
  const Doubles radius = square_root(-2.0 * log_fraction(fraction(r0) + 1u));
  Doubles cosine, sine;
  cos_sin_fraction(fraction(r1), cosine, sine);
  return float_bits(radius * cosine) | float_bits(radius * sine) << 32;
}

inline void fill_normals(const PhiloxRequest& request, std::int64_t sample_id, std::int64_t first_block,
                         std::int64_t blocks, float* out) {
  const std::uint32_t key0 = static_cast<std::uint32_t>(request.seed);
  const std::uint32_t key1 = static_cast<std::uint32_t>(request.seed >> 32);
  const std::uint64_t id = static_cast<std::uint64_t>(sample_id);
  const Words step = all_lanes(request.step);
  const Words low = all_lanes(id);
  const Words high = all_lanes((id >> 32 & 0xFFFFu) | request.modality << 16 | request.stream << 24);
  Words number = kBlockOfLane + static_cast<std::uint64_t>(first_block);  // the low 32 bits count, and wrap
  for (std::int64_t done = 0; done < blocks;) {
    Blocks drawn[kBatch];
    const std::int64_t end = blocks - done < kBatch * ROHYDR_LANES ? blocks : done + kBatch * ROHYDR_LANES;
    Blocks* filled = drawn;
    for (std::int64_t block = done; block < end; block += ROHYDR_LANES) {
      *filled++ = philox({{number, step, low, high}}, key0, key1);
      number += ROHYDR_LANES;
    }
    for (const Blocks* group = drawn; done < end; ++group, done += ROHYDR_LANES) {
      const Words first = normal_pair(group->word[0], group->word[1]);
      const Words second = normal_pair(group->word[2], group->word[3]);
      const UnalignedWords numbers[2] = {even_lanes(first, second), odd_lanes(first, second)};
      if (end - done >= ROHYDR_LANES) {
        __builtin_memcpy(out + 4 * done, numbers, sizeof(numbers));
      } else {
        __builtin_memcpy(out + 4 * done, numbers, 16 * (end - done));
      }
    }
  }
}

}  // namespace
}  // namespace rohydr
