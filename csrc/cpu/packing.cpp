// SPDX-License-Identifier: MIT
#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace rohydr {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr double kLog2e = 1.44269504088896340736;

template <class T>
T read(const void* data, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
T widened(const WeightArray& array, std::int64_t index) {
  switch (array.type) {
    case WeightType::kFloat32:
      return static_cast<T>(read<float>(array.data, index));
    case WeightType::kFloat64:
      return static_cast<T>(read<double>(array.data, index));
    case WeightType::kBfloat16:
      break;
  }
  const std::uint32_t bits = static_cast<std::uint32_t>(read<std::uint16_t>(array.data, index)) << 16;
  return static_cast<T>(read<float>(&bits, 0));
}

// Lays out matrix after matrix in an arena.
template <class T>
class Packer {
 public:
  Packer(const DenoiserShape& shape, const std::vector<WeightArray>& arrays, int lanes, int tile_vectors)
      : shape_(shape), arrays_(arrays), lanes_(lanes), panel_(static_cast<std::int64_t>(lanes) * tile_vectors) {}

  void pack(PackedArena<T>& result) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    const std::int64_t block =
        room(3 * width, width) + 3 * room(width, width) + room(hidden, width) + room(width, hidden);
    const std::int64_t ends = channels > 0 ? room(width, channels) + room(2 * channels, width) : 0;
    next_ = static_cast<T*>(result.memory.reserve(static_cast<std::size_t>(layers * block + ends) * sizeof(T)));
    result.blocks.resize(static_cast<std::size_t>(layers));
    result.view = {{}, {}, result.blocks.data(), layers, channels, width, heads};
    if (channels > 0) result.view.in = take(width, channels);
    for (BlockView<T>& view : result.blocks) {
      view.qkv = take(3 * width, width, width);
      view.self_out = take(width, width);
      view.q = take(width, width, width);
      view.cross_out = take(width, width);
      view.fc1 = take(hidden, width);
      view.fc2 = take(width, hidden);
    }
    if (channels > 0) result.view.out = take(2 * channels, width);
  }

 private:
  std::int64_t room(std::int64_t columns, std::int64_t depth) const {
    const std::int64_t padded = round_up(columns, lanes_);
    return padded * depth + round_up(padded, kAlignment / static_cast<std::int64_t>(sizeof(T)));
  }

  // The next `columns` x `depth` weights and their bias; the first `queries` rows are the queries of attention.
  PackedMatrix<T> take(std::int64_t columns, std::int64_t depth, std::int64_t queries = 0) {
    const WeightArray& w = arrays_[array_++];
    const WeightArray& b = arrays_[array_++];
    const T scale = static_cast<T>(kLog2e / std::sqrt(static_cast<double>(shape_.width / shape_.heads)));
    const std::int64_t padded = round_up(columns, lanes_);
    T* const panels = next_;
    T* const bias = panels + padded * depth;
    next_ += room(columns, depth);
    for (std::int64_t column = 0; column < padded;) {
      const std::int64_t panel = column + panel_ <= padded ? panel_ : lanes_;
      T* const target = panels + column * depth;
      for (std::int64_t c = 0; c < panel; ++c) {
        bias[column + c] = column + c < columns ? element(b, column + c, column + c < queries ? scale : T(1)) : T(0);
      }
      for (std::int64_t begin = 0; begin < depth; begin += kBlock) {  // a block of the panel stays in the cache
        const std::int64_t end = std::min(depth, begin + kBlock);
        for (std::int64_t c = 0; c < panel; ++c) {
          const std::int64_t row = column + c;
          const T factor = row < queries ? scale : T(1);
          for (std::int64_t k = begin; k < end; ++k) {
            target[k * panel + c] = row < columns ? element(w, row * depth + k, factor) : T(0);
          }
        }
      }
      column += panel;
    }
    return {panels, bias, columns, depth};
  }

  static T element(const WeightArray& array, std::int64_t index, T factor) { return widened<T>(array, index) * factor; }

  static constexpr std::int64_t kBlock = 16;
  const DenoiserShape& shape_;
  const std::vector<WeightArray>& arrays_;
  const int lanes_;
  const std::int64_t panel_;
  T* next_ = nullptr;
  std::size_t array_ = 0;
};

}  // namespace

std::int64_t WeightArray::bytes() const {
  const std::int64_t size = type == WeightType::kFloat64 ? 8 : type == WeightType::kFloat32 ? 4 : 2;
  return count * size;
}

void* Arena::reserve(std::size_t bytes) {
  if (bytes > size_) {
    const std::size_t size = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), kAlignment));
    memory_.reset();
    size_ = 0;
    memory_.reset(std::aligned_alloc(kAlignment, size));
    if (!memory_) throw std::bad_alloc();
    size_ = size;
  }
  return memory_.get();
}

void Arena::Free::operator()(void* memory) const { std::free(memory); }

template <class T>
PackedWeights<T>::PackedWeights(const DenoiserShape& shape, std::vector<WeightArray> arrays)
    : shape_(shape), arrays_(std::move(arrays)) {}

template <class T>
std::size_t PackedWeights<T>::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return copy_.size() + (packed_ ? packed_->memory.bytes() : 0);
}

template <class T>
bool PackedWeights<T>::unchanged() const {
  const char* kept = copy_.data();
  for (const WeightArray& array : arrays_) {
    const std::size_t bytes = static_cast<std::size_t>(array.bytes());
    if (std::memcmp(kept, array.data, bytes) != 0) return false;
    kept += bytes;
  }
  return true;
}

template <class T>
std::shared_ptr<const PackedArena<T>> PackedWeights<T>::current(const Kernels<T>& kernels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool same_layout = lanes_ == kernels.lanes && tile_vectors_ == kernels.tile_vectors;
  if (packed_ && same_layout && unchanged()) return packed_;
  packed_.reset();
  copy_.clear();
  for (const WeightArray& array : arrays_) {
    const char* const bytes = static_cast<const char*>(array.data);
    copy_.insert(copy_.end(), bytes, bytes + array.bytes());
  }
  // From the copy: the arrays may be changing just now, and what is packed must be what is compared with.
  std::vector<WeightArray> copied = arrays_;
  const char* kept = copy_.data();
  for (WeightArray& array : copied) {
    array.data = kept;
    kept += array.bytes();
  }
  auto fresh = std::make_shared<PackedArena<T>>();  // older ones may still be read by others
  Packer<T>(shape_, copied, kernels.lanes, kernels.tile_vectors).pack(*fresh);
  packed_ = std::move(fresh);
  lanes_ = kernels.lanes;
  tile_vectors_ = kernels.tile_vectors;
  ++packs_;
  return packed_;
}

template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace rohydr
