// Rows of benchmark results: what was measured, and files of them.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace mamba3::cli {

struct BenchRow {
  std::string name;
  double value = 0;
  std::string unit;                // "tokens/s", "us", "ms", "s", "GB/s", "GFLOP/s", ...
  std::optional<double> bytes;     // that must move, and ...
  std::optional<double> flops;     // ... that must be done, for one of what `unit` counts
  std::optional<double> ceiling;   // best value possible on this machine, in `unit`
  std::optional<double> baseline;  // value of a named other program, in `unit`
  std::optional<double> paper;     // value that the paper gives, in `unit`
  // Set by BenchReport::add(): shares are above 1 only where something beats its ceiling, whichever
  // way is up.
  std::optional<double> share_of_ceiling;
  std::optional<double> ratio;  // to the baseline, larger is better
};

// A time or a size is better when it is smaller, a rate when it is larger.
bool smaller_is_better(const std::string& unit);
// How good `value` is against `reference`: above 1 when it is better.
double compare_values(double value, double reference, const std::string& unit);

nlohmann::ordered_json row_json(const BenchRow& row);

// A file that bench --out or bench/baselines/eager_torch.py --json wrote.
struct ResultFile {
  std::string path, device, commit, date;  // empty where the file does not say
  std::vector<BenchRow> rows;              // names, units, values
};

// Refuses a text that holds no list of rows.
ResultFile parse_results(const std::string& path, const std::string& text);

// "12.34", or "-" for nothing: four digits.
std::string number_cell(const std::optional<double>& value);

}  // namespace mamba3::cli
