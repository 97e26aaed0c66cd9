// SPDX-License-Identifier: MIT
// The instruction sets that this build has kernels for, and the one that this process uses.
#pragma once

#include <string>
#include <vector>

namespace rohydr {

enum class Isa { kPortable, kAvx2, kAvx512, kNeon };

const char* isa_name(Isa isa);  // "portable", "avx2", "avx512", "neon"

// What this build holds and this CPU runs, best first; kPortable is always there, last.
std::vector<Isa> usable_isas();

// The instruction set with this name. Throws std::invalid_argument (named, one sentence) when the name is unknown, or
// when this build or this CPU does not have it.
Isa isa_by_name(const std::string& name);

// The best usable one, or the one that the environment variable ROHYDR_FAST_CPU names (read at each call; empty is
// unset). Throws like isa_by_name; the sentence names the variable.
Isa selected_isa();

}  // namespace rohydr
