// SPDX-License-Identifier: MIT
// What Python calls in a simulated module, beside its kernels: tests/cuda_sim/simulation.py.
#pragma once

#include "launch.h"

#define ROHYDR_SIM_EXPORT extern "C" __attribute__((weak, used))

ROHYDR_SIM_EXPORT void* rohydr_sim_allocate(std::size_t bytes) {
  return rohydr::sim::device_memory().allocate(bytes);
}
ROHYDR_SIM_EXPORT void rohydr_sim_release_all() { rohydr::sim::device_memory().release_all(); }

// order: 0 forward, 1 reverse, 2 random with this seed.
ROHYDR_SIM_EXPORT void rohydr_sim_schedule(int order, std::uint64_t seed) {
  rohydr::sim::schedule() = {static_cast<rohydr::sim::Order>(order), seed};
}

ROHYDR_SIM_EXPORT void rohydr_sim_clear_report() { rohydr::sim::report() = {}; }
ROHYDR_SIM_EXPORT const char* rohydr_sim_error() { return rohydr::sim::report().error.c_str(); }
ROHYDR_SIM_EXPORT const char* rohydr_sim_launched() { return rohydr::sim::report().launched.c_str(); }

#undef ROHYDR_SIM_EXPORT
