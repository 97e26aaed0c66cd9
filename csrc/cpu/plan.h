// SPDX-License-Identifier: MIT
// Who computes what: samples are gathered into groups of enough rows, and groups are given to teams of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.h"

namespace rohydr {

// A batch as the plan sees it; masks are (B, T) and (B, S), true where a token or a key exists, or null for all.
struct Batch {
  std::int64_t samples, tokens, keys;
  const bool* token_mask;
  const bool* key_mask;
};

// The groups of a batch, with the lists of tokens and keys that they point to.
class Grouping {
 public:
  // Groups have at most max(rows, rows of their largest sample) rows, and one sample each if `alone`.
  Grouping(const Batch& batch, std::int64_t rows, bool alone);
  Grouping(Grouping&&) = default;

  const std::vector<Group>& groups() const { return groups_; }
  std::vector<Group>& groups() { return groups_; }

 private:
  std::vector<std::int32_t> counting_, token_, keys_;
  std::vector<Member> members_;
  std::vector<Group> groups_;
};

// Real tokens of a batch.
std::int64_t count_rows(const Batch& batch);

// Rows of a group that keep `threads` threads busy, out of `total` rows, and at most kGroupRows.
std::int64_t group_rows(std::int64_t total, int threads);

// A group together with what it costs, in any unit, and whose it is.
struct Task {
  const Group* group;
  int owner;
  double cost;
};

// Runs `run(task, team, team_number)` for every task, on at most `threads` threads. Teams of several threads, at most
// `largest_team`, are formed where single ones would leave threads idle; members run the same task at the same time.
// `prepare` is called before, on the calling thread, with the number of teams and their size: once, or once more when
// the pool turns out to be busy and the caller works alone.
void run_tasks(std::vector<Task> tasks, int threads, int largest_team,
               const std::function<void(int teams, int size)>& prepare,
               const std::function<void(const Task& task, const Team& team, int number)>& run);

}  // namespace rohydr
