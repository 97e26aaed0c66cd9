// SPDX-License-Identifier: MIT
// The threads of the OpenMP runtime that the process has loaded: torch's, where torch is there. After an operation of
// torch they go on spinning for milliseconds, on the cores that threads of our own would need; so a run takes them.
#pragma once

namespace rohydr {

// Runs body(context, index) for index 0..threads-1 as `run_on_threads` does, in the floating-point environment of the
// caller; for one caller at a time. Returns false, having run nothing, where there is no such runtime, it gives fewer
// threads, or the caller is in a parallel region of it.
bool run_on_openmp(int threads, void (*body)(void* context, int index), void* context);

// Around a fork: the child has none of the parent's threads, and would wait for them. The runtime is told to do without
// them before; where it was not, the child does not use it.
void before_fork_of_openmp();
void in_child_of_openmp();

}  // namespace rohydr
