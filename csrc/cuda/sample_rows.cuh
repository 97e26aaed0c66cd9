// SPDX-License-Identifier: MIT
// Which rows a sample has.
#pragma once

#include "block_memory.cuh"
#include "pack.cuh"

namespace rohydr {

// The numbers of the sample's tokens that exist, and how many there are.
template <class Block>
__device__ void find_tokens(Block& block) {
  const GradientParameters& p = block.p;
  const int tokens = p.sizes.tokens;
  int* const found = reinterpret_cast<int*>(block.wide());
  if (threadIdx.x < 32) {
    const int count =
        list_true(p.token_mask == nullptr ? nullptr : p.token_mask + block.number() * tokens, tokens, block.token());
    if (threadIdx.x == 0) *found = count;
  }
  __syncthreads();  // the list is whole
  block.rows = *found;
  __syncthreads();  // wide is free
}

}  // namespace rohydr
