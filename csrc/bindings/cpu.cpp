// SPDX-License-Identifier: MIT
// Python's way to the CPU kernels: the instruction sets, and the rest from the other files.
#include <chrono>

#include "packed.h"

namespace rohydr {
namespace {

py::list isa_names() {
  py::list names;
  for (const Isa isa : usable_isas()) names.append(isa_name(isa));
  return names;
}

// GFLOP/s of multiply-adds on the calling thread, over about this time.
double fma_peak(const py::object& name, const py::object& time) {
  RH_CHECK(py::isinstance<py::str>(name), "fma_peak: isa must be a name, got " << text_of(name)
                                              << ". Pass one of cpu_isas().");
  const std::string isa = py::cast<std::string>(name);
  const double milliseconds = PyFloat_AsDouble(time.ptr());
  const bool is_number = !PyErr_Occurred();
  PyErr_Clear();
  RH_CHECK(is_number, "fma_peak: milliseconds must be a number, got " << text_of(time) << ". Choose for example 20.");
  RH_CHECK(milliseconds > 0 && milliseconds <= 60000,
           "fma_peak: milliseconds must be in (0, 60000], got " << milliseconds << ". Choose for example 20.");
  const Kernels<float>& kernels = kernels_of<float>(isa_by_name(isa));
  const ReleasedGil released;
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double flop = 0, seconds = 0;
  do {
    flop += kernels.fma_peak(20000);
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds < milliseconds * 1e-3);
  return flop / seconds * 1e-9;
}

}  // namespace

void bind_cpu(py::module_& m) {
  bind_packed(m);
  bind_loops(m);
  bind_networks(m);
  bind_conditioning(m);
  bind_diffusion_loss(m);
  m.def("cpu_isas", &isa_names, "Instruction sets that can be used here, best first.");
  m.def("cpu_isa", [] { return isa_name(selected_isa()); }, "The instruction set in use.");
  m.def("fma_peak", &fma_peak, py::arg("isa"), py::arg("milliseconds"), "GFLOP/s of multiply-adds, one thread.");
  m.def("softmax_range_hits", &softmax_range_hits, "Softmax rows that left the cheap path so far.");
}

}  // namespace rohydr
