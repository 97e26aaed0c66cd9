// SPDX-License-Identifier: MIT
#include "plan.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>

#include "thread_pool.h"

namespace rohydr {
namespace {

// From about 40 rows on, the tiles of a product are full; much more would not fit the caches.
constexpr std::int64_t kGroupRows = 64;
constexpr std::int64_t kRowsOfMember = 8;  // what a member of a team gets at least, see OwnRows
constexpr double kTeamEfficiency = 0.85;   // of a team of two and more: rows do not split evenly, and members wait

// Python may hand over any byte; as a bool, only 0 and 1 have a meaning in C++.
bool is_set(const bool* mask, std::int64_t i) { return reinterpret_cast<const unsigned char*>(mask)[i] != 0; }

std::int64_t count(const bool* mask, std::int64_t size) {
  if (mask == nullptr) return size;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(mask);
  return size - std::count(bytes, bytes + size, 0);
}

// The time that the tasks take on `teams` teams of `size` threads, each task going to the team that is free first.
double makespan(const std::vector<Task>& tasks, int teams, int size) {
  std::vector<double> busy(static_cast<std::size_t>(teams));
  for (const Task& task : tasks) {
    const std::int64_t members = std::clamp<std::int64_t>(task.group->rows / kRowsOfMember, 1, size);
    const double speed = members > 1 ? static_cast<double>(members) * kTeamEfficiency : 1;
    *std::min_element(busy.begin(), busy.end()) += task.cost / speed;
  }
  return *std::max_element(busy.begin(), busy.end());
}

struct TeamState {
  explicit TeamState(int size) : barrier(size) {}
  Barrier barrier;
  std::size_t next = 0;
};

struct Shared {
  const std::vector<Task>& tasks;
  const std::function<void(const Task&, const Team&, int)>& run;
  int size;
  std::vector<std::unique_ptr<TeamState>> teams;
  std::atomic<std::size_t> taken{0};
};

void meet(void* barrier) { static_cast<Barrier*>(barrier)->wait(); }

void work(void* context, int index) {
  Shared& shared = *static_cast<Shared*>(context);
  const int number = index / shared.size;
  TeamState& state = *shared.teams[static_cast<std::size_t>(number)];
  const Team team{index % shared.size, shared.size, meet, &state.barrier};
  while (true) {
    if (team.index == 0) state.next = shared.taken.fetch_add(1);
    state.barrier.wait();
    const std::size_t task = state.next;
    if (task >= shared.tasks.size()) return;
    shared.run(shared.tasks[task], team, number);
    state.barrier.wait();  // the first member may now take another task and reuse the memory
  }
}

}  // namespace

std::int64_t count_rows(const Batch& batch) { return count(batch.token_mask, batch.samples * batch.tokens); }

std::int64_t group_rows(std::int64_t total, int threads) {
  return std::clamp<std::int64_t>((total + threads - 1) / threads, 1, kGroupRows);
}

Grouping::Grouping(const Batch& batch, std::int64_t rows, bool alone)
    : counting_(batch.samples == 0 ? 0 : static_cast<std::size_t>(std::max(batch.tokens, batch.keys))) {
  std::iota(counting_.begin(), counting_.end(), 0);
  // Room first: groups point into these vectors.
  token_.reserve(static_cast<std::size_t>(count_rows(batch)));
  if (batch.key_mask != nullptr) {
    keys_.reserve(static_cast<std::size_t>(count(batch.key_mask, batch.samples * batch.keys)));
  }
  members_.reserve(static_cast<std::size_t>(batch.samples));
  for (std::int64_t sample = 0; sample < batch.samples; ++sample) {
    const bool* const tokens = batch.token_mask == nullptr ? nullptr : batch.token_mask + sample * batch.tokens;
    const std::int64_t own = count(tokens, batch.tokens);
    if (own == 0) continue;
    if (groups_.empty() || alone || groups_.back().rows + own > rows) {
      groups_.push_back({members_.data() + members_.size(), 0, 0, token_.data() + token_.size(), counting_.data(), 0});
    }
    Member member{sample, groups_.back().rows, own, counting_.data(), batch.keys, sample * batch.keys};
    for (std::int64_t t = 0; t < batch.tokens; ++t) {
      if (tokens == nullptr || is_set(tokens, t)) token_.push_back(static_cast<std::int32_t>(t));
    }
    if (batch.key_mask != nullptr) {
      const bool* const mask = batch.key_mask + sample * batch.keys;
      member.keys = keys_.data() + keys_.size();
      member.key_count = count(mask, batch.keys);
      for (std::int64_t s = 0; s < batch.keys; ++s) {
        if (is_set(mask, s)) keys_.push_back(static_cast<std::int32_t>(s));
      }
    }
    members_.push_back(member);
    groups_.back().member_count += 1;
    groups_.back().rows += own;
  }
}

void run_tasks(std::vector<Task> tasks, int threads, int largest_team, const std::function<void(int, int)>& prepare,
               const std::function<void(const Task&, const Team&, int)>& run) {
  if (tasks.empty()) return;
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  int size = 1;
  double best = makespan(tasks, threads, 1);
  for (int candidate = 2; candidate <= std::min(threads, largest_team); ++candidate) {
    const double time = makespan(tasks, threads / candidate, candidate);
    if (time < best) {
      best = time;
      size = candidate;
    }
  }
  int teams = std::min<int>(threads / size, static_cast<int>(std::min<std::size_t>(tasks.size(), 1 << 20)));
  const auto attempt = [&] {
    prepare(teams, size);
    Shared shared{tasks, run, size, {}, {}};
    for (int i = 0; i < teams; ++i) shared.teams.push_back(std::make_unique<TeamState>(size));
    if (teams * size == 1) {
      work(&shared, 0);
      return true;
    }
    return run_on_threads(teams * size, work, &shared, largest_team == 1 ? Threads::kOfOpenMp : Threads::kOwn);
  };
  if (attempt()) return;
  teams = size = 1;  // another caller has the pool: alone, with the same bits
  attempt();
}

}  // namespace rohydr
