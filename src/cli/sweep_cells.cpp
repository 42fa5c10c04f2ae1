#include "cli/sweep_cells.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <set>

#include "cli/options.h"
#include "core/check.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

std::vector<double> parse_rates(const std::string& list) {
  std::vector<double> out;
  for (std::string text : split_list(list)) {
    const std::string refused = number(1e-12, 1e3)(text);
    if (!refused.empty()) {
      fail(ErrorCode::kUsage, "--rates: ", refused, "; correct the list");
    }
    out.push_back(std::stod(text));
  }
  return out;
}

std::vector<std::string> parse_ropes(const std::string& list) {
  std::vector<std::string> out = split_list(list);
  for (std::string& text : out) {
    const std::string refused = one_of(rope_names())(text);
    if (!refused.empty()) {
      fail(ErrorCode::kUsage, "--ropes: ", refused, "; correct the list");
    }
  }
  return out;
}

// Two trainings of one name would share a folder, and the second one would be the first one's.
void refuse_same_names(const std::vector<SweepCell>& cells) {
  std::set<std::string> names;
  for (const SweepCell& cell : cells) {
    if (names.insert(cell.name()).second) continue;
    fail(ErrorCode::kUsage, "the sweep has two trainings ", cell.name(),
         "; expected values that differ, rates in their first six digits; correct the lists");
  }
}

}  // namespace

std::string SweepCell::name() const {
  return str("rope=", rope, "/width=", width, "/rate=", rate, "/seed=", seed);
}

fs::path SweepCell::folder(const fs::path& sweep) const {
  std::string flat = name();
  std::ranges::replace(flat, '/', ',');
  return sweep / flat;
}

std::vector<SweepCell> sweep_cells(const TrainCommand& command) {
  const SweepCommand& sweep = command.sweep;
  const TaskCommand& task = command.task;
  std::vector<double> rates{command.rate.value_or(Schedule().peak)};
  std::vector<std::int64_t> seeds{static_cast<std::int64_t>(command.common.seed.value_or(0))};
  std::vector<std::int64_t> widths{task.width.value_or(task_model(task, command.config).width)};
  std::vector<std::string> ropes{task.rope.empty() ? rope_name(Rope::kDataDependent) : task.rope};
  if (!sweep.rates.empty()) rates = parse_rates(sweep.rates);
  if (!sweep.seeds.empty()) seeds = parse_numbers("--seeds", sweep.seeds, 0);
  if (!sweep.widths.empty()) widths = parse_numbers("--widths", sweep.widths, 1);
  if (!sweep.ropes.empty()) ropes = parse_ropes(sweep.ropes);
  std::vector<SweepCell> cells;
  for (const std::string& rope : ropes) {
    for (const std::int64_t width : widths) {
      for (const double rate : rates) {
        for (const std::int64_t seed : seeds) {
          cells.push_back({rope, width, rate, static_cast<std::uint64_t>(seed)});
        }
      }
    }
  }
  refuse_same_names(cells);
  return cells;
}

TrainCommand cell_command(const TrainCommand& sweep, const fs::path& folder,
                          const SweepCell& cell) {
  TrainCommand out = sweep;
  out.sweep = {};
  out.task.rope = cell.rope;
  out.task.width = cell.width;
  out.rate = cell.rate;
  out.common.seed = cell.seed;
  out.common.threads = 1;
  out.common.quiet = true;
  out.output = cell.folder(folder).string();
  out.resume = has_train_checkpoints(out.output) ? out.output : "";
  return out;
}

}  // namespace mamba3::cli
