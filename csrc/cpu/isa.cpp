// SPDX-License-Identifier: MIT
#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "rohydr/check.h"

namespace rohydr {
namespace {

constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kNeon, Isa::kPortable};

// The ROHYDR_HAS_* definitions come from the build, which compiles the kernels of an instruction set only for its
// architecture. The features asked of the CPU are exactly those that the kernels' files are compiled with.
bool usable(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
#if defined(ROHYDR_HAS_AVX512)
      return usable(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
      return false;
#endif
    case Isa::kAvx2:
#if defined(ROHYDR_HAS_AVX2)
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
      return false;
#endif
    case Isa::kNeon:
#if defined(ROHYDR_HAS_NEON)
      return true;  // every aarch64 CPU has it
#else
      return false;
#endif
    case Isa::kPortable:
      return true;
  }
  return false;
}

Isa by_name(const std::string& name, const char* what) {
  const std::vector<Isa> isas = usable_isas();
  const auto found = std::find_if(isas.begin(), isas.end(), [&](Isa isa) { return name == isa_name(isa); });
  std::string names;
  for (const Isa isa : isas) names = isa_name(isa) + (names.empty() ? "" : ", " + names);
  RH_CHECK(found != isas.end(), what << " must be one of " << names << " (usable here), got '" << name
                                     << "'. Name one of these, or unset it for the best one.");
  return *found;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> result;
  std::copy_if(std::begin(kBestFirst), std::end(kBestFirst), std::back_inserter(result), usable);
  return result;
}

Isa isa_by_name(const std::string& name) { return by_name(name, "isa: name"); }

Isa selected_isa() {
  const char* name = std::getenv("ROHYDR_FAST_CPU");
  if (name != nullptr && *name != '\0') return by_name(name, "ROHYDR_FAST_CPU:");
  return *std::find_if(std::begin(kBestFirst), std::end(kBestFirst), usable);
}

}  // namespace rohydr
