// SPDX-License-Identifier: MIT
#define RH_VECTOR_BYTES 16
#define RH_TILE_ROWS 4
#define RH_TILE_VECTORS 2
#include "kernels/table.h"

namespace rohydr {

template <class T>
const Kernels<T>* kernels_portable() {
  return &kTable<T>;
}
template const Kernels<float>* kernels_portable<float>();
template const Kernels<double>* kernels_portable<double>();

}  // namespace rohydr
