// SPDX-License-Identifier: MIT
#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

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
T widened(WeightType type, const void* data, std::int64_t index) {
  switch (type) {
    case WeightType::kFloat32:
      return static_cast<T>(read<float>(data, index));
    case WeightType::kFloat64:
      return static_cast<T>(read<double>(data, index));
    case WeightType::kBfloat16:
      break;
  }
  const std::uint32_t bits = static_cast<std::uint32_t>(read<std::uint16_t>(data, index)) << 16;
  return static_cast<T>(read<float>(&bits, 0));
}

template <class T>
constexpr WeightType kOwnType = sizeof(T) == 8 ? WeightType::kFloat64 : WeightType::kFloat32;

// Lays out matrix after matrix in the arenas of the way there and of the way back.
template <class T>
class Packer {
 public:
  // `arrays` lie one after the other in `copy`, or are brought there while they are packed.
  Packer(const DenoiserShape& shape, const std::vector<WeightArray>& arrays, bool condition, const Kernels<T>& kernels,
         char* copy)
      : shape_(shape), arrays_(arrays), condition_(condition), kernels_(kernels), lanes_(kernels.lanes),
        panel_(static_cast<std::int64_t>(kernels.lanes) * kernels.tile_vectors), copy_(copy) {}

  // `changed`: the copy is made, and the arena of the way there filled.
  void pack(PackedArena<T>& result, bool changed, bool transposed) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    changed_ = changed;
    transposed_ = transposed;
    if (changed) {
      next_ = reserve(result.memory, &Packer::room).first;
      result.blocks.resize(static_cast<std::size_t>(layers));
      result.view = {{}, {}, result.blocks.data(), layers, channels, width, heads};
    }
    result.transposed.blocks = nullptr;
    if (transposed) {
      back_ = reserve(result.transposed_memory, &Packer::transposed_room).second;
      result.transposed_blocks.resize(static_cast<std::size_t>(layers));
    }
    BlockView<T> unused{};
    if (channels > 0) matrix(result.view.in, result.transposed.in, width, channels);
    for (std::size_t i = 0; i < result.blocks.size(); ++i) {
      BlockView<T>& there = result.blocks[i];
      BlockView<T>& back = transposed ? result.transposed_blocks[i] : unused;
      matrix(there.qkv, back.qkv, 3 * width, width, width);
      matrix(there.self_out, back.self_out, width, width);
      matrix(there.q, back.q, width, width, width);
      matrix(there.cross_out, back.cross_out, width, width);
      matrix(there.fc1, back.fc1, hidden, width);
      matrix(there.fc2, back.fc2, width, hidden);
    }
    if (channels > 0) matrix(result.view.out, result.transposed.out, 2 * channels, width);
    for (std::size_t i = 0; condition_ && i < result.blocks.size(); ++i) {
      BlockView<T>& there = result.blocks[i];
      BlockView<T>& back = transposed ? result.transposed_blocks[i] : unused;
      matrix(there.k, back.k, width, width);
      matrix(there.v, back.v, width, width);
    }
    if (transposed) result.transposed.blocks = result.transposed_blocks.data();
  }

 private:
  using Room = std::int64_t (Packer::*)(std::int64_t, std::int64_t) const;
  std::int64_t lines(std::int64_t columns) const {
    return round_up(round_up(columns, lanes_), kAlignment / static_cast<std::int64_t>(sizeof(T)));
  }
  std::int64_t room(std::int64_t columns, std::int64_t depth) const {
    return round_up(columns, lanes_) * depth + lines(columns);
  }
  std::int64_t transposed_room(std::int64_t columns, std::int64_t depth) const { return lines(depth) * columns; }

  // The first element of the arena and the one after its last.
  std::pair<T*, T*> reserve(Arena& memory, Room room_of) {
    const auto [layers, channels, width, heads, hidden] = shape_;
    const auto need = [&](std::int64_t columns, std::int64_t depth) { return (this->*room_of)(columns, depth); };
    const std::int64_t block =
        need(3 * width, width) + (condition_ ? 5 : 3) * need(width, width) + need(hidden, width) + need(width, hidden);
    const std::int64_t ends = channels > 0 ? need(width, channels) + need(2 * channels, width) : 0;
    const std::int64_t size = layers * block + ends;
    T* const first = static_cast<T*>(memory.reserve(static_cast<std::size_t>(size) * sizeof(T)));
    return {first, first + size};
  }

  // The next array as numbers of T, from the copy: the array may be changing just now, and what is packed must be what is
  // compared with.
  const T* take(std::vector<T>& room) {
    const WeightArray& array = arrays_[array_++];
    char* const kept = std::exchange(copy_, copy_ + array.bytes());
    if (changed_) std::memcpy(kept, array.data, static_cast<std::size_t>(array.bytes()));
    const bool fits = array.type == kOwnType<T> && reinterpret_cast<std::uintptr_t>(kept) % sizeof(T) == 0;
    if (fits) return reinterpret_cast<const T*>(kept);
    room.resize(static_cast<std::size_t>(array.count));
    for (std::int64_t i = 0; i < array.count; ++i) room[static_cast<std::size_t>(i)] = widened<T>(array.type, kept, i);
    return room.data();
  }

  // W (columns, depth) and its bias; the first `queries` columns are Q.
  void matrix(PackedMatrix<T>& there, PackedMatrix<T>& back, std::int64_t columns, std::int64_t depth,
              std::int64_t queries = 0) {
    const T* const w = take(weight_);
    const T* const b = take(bias_);
    if (changed_) there = forward(w, b, columns, depth, queries);
    if (transposed_) back = transposed(w, columns, depth);
  }

  std::int64_t panel_at(std::int64_t column, std::int64_t padded) const {
    return column + panel_ <= padded ? panel_ : lanes_;
  }

  PackedMatrix<T> forward(const T* w, const T* b, std::int64_t columns, std::int64_t depth, std::int64_t queries) {
    const T scale = static_cast<T>(kLog2e / std::sqrt(static_cast<double>(shape_.width / shape_.heads)));
    const std::int64_t padded = round_up(columns, lanes_);
    T* const panels = next_;
    for (std::int64_t column = 0; column < padded;) {
      const std::int64_t panel = panel_at(column, padded), real = std::min(panel, columns - column);
      T* const target = panels + column * depth;
      kernels_.transpose(w + column * depth, depth, real, depth, target, panel);
      for (std::int64_t k = 0; k < depth; ++k) {
        T* const line = target + k * panel;
        for (std::int64_t c = 0; c < std::min(real, queries - column); ++c) line[c] *= scale;
        std::fill(line + real, line + panel, T(0));
      }
      column += panel;
    }
    T* const bias = panels + padded * depth;
    for (std::int64_t i = 0; i < padded; ++i) bias[i] = i < columns ? b[i] * (i < queries ? scale : T(1)) : T(0);
    next_ = bias + lines(columns);
    return {panels, bias, columns, depth};
  }

  // From the end of the arena on, so that they lie in the order in which the way back uses them.
  PackedMatrix<T> transposed(const T* w, std::int64_t columns, std::int64_t depth) {
    const std::int64_t padded = round_up(depth, lanes_);
    T* const panels = back_ -= transposed_room(columns, depth);
    for (std::int64_t column = 0; column < padded;) {
      const std::int64_t panel = panel_at(column, padded), real = std::min(panel, depth - column);
      for (std::int64_t k = 0; k < columns; ++k) {
        T* const line = panels + column * columns + k * panel;
        std::copy_n(w + k * depth + column, real, line);
        std::fill(line + real, line + panel, T(0));
      }
      column += panel;
    }
    return {panels, nullptr, depth, columns};
  }

  const DenoiserShape& shape_;
  const std::vector<WeightArray>& arrays_;
  const bool condition_;
  const Kernels<T>& kernels_;
  const std::int64_t lanes_, panel_;
  char* copy_;
  bool changed_ = false, transposed_ = false;
  T *next_ = nullptr, *back_ = nullptr;
  std::size_t array_ = 0;
  std::vector<T> weight_, bias_;
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
    : shape_(shape), arrays_(std::move(arrays)), condition_(condition), spare_(std::make_shared<SpareArena<T>>()) {}

template <class T>
std::shared_ptr<PackedArena<T>> PackedWeights<T>::unread_arena() {
  std::unique_ptr<PackedArena<T>> arena;
  {
    const std::lock_guard<std::mutex> lock(spare_->mutex);
    arena = std::move(spare_->arena);
  }
  if (arena == nullptr) arena = std::make_unique<PackedArena<T>>();
  return {arena.release(), [spare = spare_](PackedArena<T>* unread) {
            const std::lock_guard<std::mutex> lock(spare->mutex);
            spare->arena.reset(unread);
          }};
}

template <class T>
std::size_t PackedWeights<T>::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::lock_guard<std::mutex> lock_of_spare(spare_->mutex);
  std::size_t sum = copy_.size();
  for (const PackedArena<T>* arena : {packed_.get(), spare_->arena.get()}) {
    if (arena != nullptr) sum += arena->memory.bytes() + arena->transposed_memory.bytes();
  }
  return sum;
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
  const bool changed = packed_ == nullptr || !same_layout || !unchanged();
  if (!changed && (!transposed || packed_->transposed.blocks != nullptr)) return packed_;
  if (changed) packed_.reset();  // what is not filled to its end is nobody's
  const std::shared_ptr<PackedArena<T>> arena = changed ? unread_arena() : packed_;
  std::int64_t bytes = 0;
  for (const WeightArray& array : arrays_) bytes += array.bytes();
  copy_.resize(static_cast<std::size_t>(bytes));
  Packer<T>(shape_, arrays_, condition_, kernels, copy_.data()).pack(*arena, changed, transposed);
  if (changed) {
    packed_ = arena;
    lanes_ = kernels.lanes;
    tile_vectors_ = kernels.tile_vectors;
    ++packs_;
  }
  return packed_;
}

template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace rohydr
