// Results beside those of an earlier run.
#pragma once

#include <string>
#include <vector>

#include "cli/bench_rows.h"

namespace mamba3::cli {

struct ComparedRow {
  std::string name, unit;
  double before = 0, now = 0;
  std::optional<double> ratio;  // above 1: better than before; none where no way is up
};

struct Comparison {
  ResultFile before;  // without its rows
  std::vector<ComparedRow> rows;
  std::vector<std::string> only_before, only_now;  // "NAME (UNIT)"
};

// Rows belong together when name and unit are equal; the order is that of `now`.
Comparison compare_results(ResultFile before, const std::vector<BenchRow>& now);

std::string comparison_text(const Comparison& comparison);
nlohmann::ordered_json comparison_json(const Comparison& comparison);

}  // namespace mamba3::cli
