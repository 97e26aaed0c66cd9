// SPDX-License-Identifier: MIT
#include "noise.h"

#include "noise/normal_kernels.h"
#include "rohydr/check.h"

namespace rohydr {

NormalKernel normal_kernel(Isa isa) {
  NormalKernel kernel = nullptr;
  if (isa == Isa::kPortable) kernel = normal_portable;
#if defined(ROHYDR_HAS_AVX2)
  if (isa == Isa::kAvx2) kernel = normal_avx2;
#endif
#if defined(ROHYDR_HAS_AVX512)
  if (isa == Isa::kAvx512) kernel = normal_avx512;
#endif
#if defined(ROHYDR_HAS_NEON)
  if (isa == Isa::kNeon) kernel = normal_neon;
#endif
  RH_CHECK(kernel != nullptr, "normal_kernel: isa must be one that this build holds, got "
                                  << isa_name(isa) << ". Choose among usable_isas().");
  return kernel;
}

}  // namespace rohydr
