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
  Packer(const DenoiserShape& shape, const std::vector<WeightArray>& arrays, bool condition, int lanes,
         int tile_vectors)
      : shape_(shape), arrays_(arrays), condition_(condition), lanes_(lanes),
        panel_(static_cast<std::int64_t>(lanes) * tile_vectors) {}

  void pack(PackedArena<T>& result) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    reserve(result.memory, result.blocks, &Packer::room);
    result.view = {{}, {}, result.blocks.data(), layers, channels, width, heads};
    const T scale = static_cast<T>(kLog2e / std::sqrt(static_cast<double>(width / heads)));
    walk(result.view.in, result.view.out, result.blocks,
         [&](std::int64_t columns, std::int64_t depth, std::int64_t queries) {
           const WeightArray& w = arrays_[array_++];
           const WeightArray& b = arrays_[array_++];
           const PackedMatrix<T> matrix = take(columns, depth, [&](std::int64_t column, std::int64_t k) {
             return widened<T>(w, column * depth + k) * (column < queries ? scale : T(1));
           });
           T* const bias = next_;
           next_ += lines(columns);
           for (std::int64_t i = 0; i < round_up(columns, lanes_); ++i) {
             bias[i] = i < columns ? widened<T>(b, i) * (i < queries ? scale : T(1)) : T(0);
           }
           return PackedMatrix<T>{matrix.data, bias, columns, depth};
         });
  }

  // From the end of the arena on, so that they lie in the order in which the way back uses them.
  void pack_transposed(PackedArena<T>& result) {
    const auto size = reserve(result.transposed_memory, result.transposed_blocks, &Packer::transposed_room);
    next_ += size;
    result.transposed = {{}, {}, result.transposed_blocks.data()};
    walk(result.transposed.in, result.transposed.out, result.transposed_blocks,
         [&](std::int64_t columns, std::int64_t depth, std::int64_t) {
           const WeightArray& w = arrays_[array_];
           array_ += 2;
           T* const place = next_ -= transposed_room(columns, depth);
           const PackedMatrix<T> matrix = take(
               depth, columns, [&](std::int64_t column, std::int64_t k) { return widened<T>(w, k * depth + column); });
           next_ = place;
           return matrix;
         });
  }

 private:
  // Calls visit(columns, depth, queries) for every matrix in order of use; the first `queries` columns are Q.
  template <class Visit>
  void walk(PackedMatrix<T>& in, PackedMatrix<T>& out, std::vector<BlockView<T>>& blocks, const Visit& visit) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    array_ = 0;
    if (channels > 0) in = visit(width, channels, 0);
    for (BlockView<T>& view : blocks) {
      view.qkv = visit(3 * width, width, width);
      view.self_out = visit(width, width, 0);
      view.q = visit(width, width, width);
      view.cross_out = visit(width, width, 0);
      view.fc1 = visit(hidden, width, 0);
      view.fc2 = visit(width, hidden, 0);
    }
    if (channels > 0) out = visit(2 * channels, width, 0);
    if (!condition_) return;
    for (BlockView<T>& view : blocks) {
      view.k = visit(width, width, 0);
      view.v = visit(width, width, 0);
    }
  }

  using Room = std::int64_t (Packer::*)(std::int64_t, std::int64_t) const;
  std::int64_t lines(std::int64_t columns) const {
    return round_up(round_up(columns, lanes_), kAlignment / static_cast<std::int64_t>(sizeof(T)));
  }
  std::int64_t room(std::int64_t columns, std::int64_t depth) const {
    return round_up(columns, lanes_) * depth + lines(columns);
  }
  std::int64_t transposed_room(std::int64_t columns, std::int64_t depth) const { return lines(depth) * columns; }

  // Elements of the arena, whose first is `next_` then.
  std::int64_t reserve(Arena& memory, std::vector<BlockView<T>>& blocks, Room room_of) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    const auto need = [&](std::int64_t columns, std::int64_t depth) { return (this->*room_of)(columns, depth); };
    const std::int64_t block =
        need(3 * width, width) + (condition_ ? 5 : 3) * need(width, width) + need(hidden, width) + need(width, hidden);
    const std::int64_t ends = channels > 0 ? need(width, channels) + need(2 * channels, width) : 0;
    next_ = static_cast<T*>(memory.reserve(static_cast<std::size_t>(layers * block + ends) * sizeof(T)));
    blocks.resize(static_cast<std::size_t>(layers));
    return layers * block + ends;
  }

  // Panels of the matrix whose element at (column, k) is `element(column, k)`.
  template <class Element>
  PackedMatrix<T> take(std::int64_t columns, std::int64_t depth, const Element& element) {
    const std::int64_t padded = round_up(columns, lanes_);
    T* const panels = next_;
    next_ += padded * depth;
    for (std::int64_t column = 0; column < padded;) {
      const std::int64_t panel = column + panel_ <= padded ? panel_ : lanes_;
      T* const target = panels + column * depth;
      for (std::int64_t begin = 0; begin < depth; begin += kBlock) {  // a block of the panel stays in the cache
        const std::int64_t end = std::min(depth, begin + kBlock);
        for (std::int64_t c = 0; c < panel; ++c) {
          for (std::int64_t k = begin; k < end; ++k) {
            target[k * panel + c] = column + c < columns ? element(column + c, k) : T(0);
          }
        }
      }
      column += panel;
    }
    return {panels, nullptr, columns, depth};
  }

  static constexpr std::int64_t kBlock = 16;
  const DenoiserShape& shape_;
  const std::vector<WeightArray>& arrays_;
  const bool condition_;
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
PackedWeights<T>::PackedWeights(const DenoiserShape& shape, std::vector<WeightArray> arrays, bool condition)
    : shape_(shape), arrays_(std::move(arrays)), condition_(condition) {}

template <class T>
std::size_t PackedWeights<T>::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return copy_.size() + (packed_ ? packed_->memory.bytes() + packed_->transposed_memory.bytes() : 0);
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
std::shared_ptr<const PackedArena<T>> PackedWeights<T>::current(const Kernels<T>& kernels, bool transposed) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool same_layout = lanes_ == kernels.lanes && tile_vectors_ == kernels.tile_vectors;
  const bool current = packed_ && same_layout && unchanged();
  if (current && (!transposed || packed_->transposed.blocks != nullptr)) return packed_;
  if (!current) {
    packed_.reset();
    copy_.clear();
    for (const WeightArray& array : arrays_) {
      const char* const bytes = static_cast<const char*>(array.data);
      copy_.insert(copy_.end(), bytes, bytes + array.bytes());
    }
  }
  // From the copy: the arrays may be changing just now, and what is packed must be what is compared with.
  std::vector<WeightArray> copied = arrays_;
  const char* kept = copy_.data();
  for (WeightArray& array : copied) {
    array.data = kept;
    kept += array.bytes();
  }
  Packer<T> packer(shape_, copied, condition_, kernels.lanes, kernels.tile_vectors);
  if (!current) {
    auto fresh = std::make_shared<PackedArena<T>>();  // older ones may still be read by others
    packer.pack(*fresh);
    packed_ = std::move(fresh);
    lanes_ = kernels.lanes;
    tile_vectors_ = kernels.tile_vectors;
    ++packs_;
  }
  if (transposed) packer.pack_transposed(*packed_);  // nobody reads that part before it is there
  return packed_;
}

template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace rohydr
