// SPDX-License-Identifier: MIT
// rohydr_fast._C: checks what Python passes, releases the GIL, launches. Importing it calls no CUDA function.
#include "arrays.h"

namespace {

namespace py = pybind11;

constexpr int kInterface = 7;  // must equal INTERFACE in rohydr_fast/_native.py: raise both when a signature changes

py::dict build_info() {
  py::dict info;
  info["interface"] = kInterface;
  info["version"] = ROHYDR_VERSION;
  info["compiler"] = ROHYDR_COMPILER;
#if defined(ROHYDR_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_version"] = ROHYDR_CUDA_VERSION;
  info["cuda_architectures"] = ROHYDR_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of rohydr_fast; use rohydr_fast.ops instead.";
  m.def("build_info", &build_info, "What this module was built from and with.");
  rohydr::bind_philox(m);
  rohydr::bind_cpu(m);
  rohydr::bind_signature(m);
#if defined(ROHYDR_WITH_CUDA)
  rohydr::bind_cuda_loops(m);
  rohydr::bind_cuda_gradients(m);
#endif
  py::module_::import("atexit").attr("register")(py::cpp_function(&rohydr::keep_threads_away));
}
