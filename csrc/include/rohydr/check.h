// SPDX-License-Identifier: MIT
// Checks of what a caller passed: a false condition throws std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

// RH_CHECK(count >= 0, "philox: count must be 0 or more, got " << count << ". ...");
#define RH_CHECK(condition, message)                    \
  do {                                                  \
    if (!(condition)) {                                 \
      std::ostringstream rh_check_text;                 \
      rh_check_text << message;                         \
      throw std::invalid_argument(rh_check_text.str()); \
    }                                                   \
  } while (false)
