// SPDX-License-Identifier: MIT
#include <algorithm>

#include "noise.h"
#include "rohydr/launch.h"
#include "rohydr/philox.h"

namespace rohydr {
namespace {

// Rows of whole blocks; the last block of a row may be cut. `convert(block, values)` makes four numbers of one block.
template <typename T, typename Convert>
void fill(const PhiloxRequest& request, T* out, Convert convert) {
  const std::int64_t whole = request.count / 4;
  const std::int64_t rest = request.count % 4;
  T values[4];
  for (std::int64_t sample = 0; sample < request.samples; ++sample) {
    const std::int64_t id = request.sample_ids[sample];
    T* row = out + sample * request.count;
    for (std::int64_t block = 0; block < whole; ++block) {
      convert(philox_block(request, id, block), values);
      std::copy_n(values, 4, row + 4 * block);
    }
    if (rest > 0) {
      convert(philox_block(request, id, whole), values);
      std::copy_n(values, rest, row + 4 * whole);
    }
  }
}

}  // namespace

void launch_philox_bits_cpu(const PhiloxRequest& request, std::int64_t* out) {
  fill(request, out, [](const PhiloxBlock& block, std::int64_t (&values)[4]) {
    for (int i = 0; i < 4; ++i) values[i] = block.word[i];
  });
}

void launch_philox_uniform_cpu(const PhiloxRequest& request, float* out) {
  fill(request, out, [](const PhiloxBlock& block, float (&values)[4]) {
    for (int i = 0; i < 4; ++i) values[i] = philox_uniform(block.word[i]);
  });
}

// A row whose last block is cut ends in a buffer, together with the whole blocks before it that fill a vector.
void launch_philox_normal_cpu(const PhiloxRequest& request, NormalKernel normals, float* out) {
  constexpr std::int64_t kBuffered = 16;  // blocks; a multiple of every kernel's vector
  const std::int64_t blocks = philox_blocks_per_row(request.count);
  const std::int64_t direct = request.count % 4 == 0 ? blocks : (blocks - 1) / kBuffered * kBuffered;
  float values[4 * kBuffered];
  for (std::int64_t sample = 0; sample < request.samples; ++sample) {
    const std::int64_t id = request.sample_ids[sample];
    float* row = out + sample * request.count;
    normals(request, id, 0, direct, row);
    if (direct < blocks) {
      normals(request, id, direct, blocks - direct, values);
      std::copy_n(values, request.count - 4 * direct, row + 4 * direct);
    }
  }
}

}  // namespace rohydr
