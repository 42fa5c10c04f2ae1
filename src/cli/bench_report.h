// What `bench` measures, as rows with their ceilings: for people, for --json and for --out.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.h"

namespace mamba3::cli {

struct BenchRow {
  std::string name;
  double value = 0;
  std::string unit;                // "tokens/s", "us", "GB/s", "s"
  std::optional<double> bytes;     // that must move, and ...
  std::optional<double> flops;     // ... that must be done, for one of what `unit` counts
  std::optional<double> ceiling;   // best value possible on this machine, in `unit`
  std::optional<double> baseline;  // value of a named other program, in `unit`
  // Set by add(): shares are above 1 only where something beats its ceiling, whichever way is up.
  std::optional<double> share_of_ceiling;
  std::optional<double> ratio;  // to the baseline, larger is better
};

class BenchReport {
 public:
  BenchReport(const CommonOptions& options, const Context& ctx);

  // Rows of the same name and unit in this file become the baselines of rows that have none.
  void read_baselines(const std::string& path);

  // Rows are shown as they come, unless --json asks for the document.
  void add(BenchRow row);
  const std::vector<BenchRow>& rows() const { return rows_; }
  Json document() const;
  void finish(const std::string& out_path) const;

 private:
  void show(const BenchRow& row);

  bool json_;
  bool quiet_;
  std::string device_;
  int threads_;
  std::vector<BenchRow> rows_;
  std::map<std::string, double> baselines_;  // by name and unit
};

// "Intel(R) Xeon(R) ..., 2 threads"
std::string device_name(const Context& ctx);

// The median; `times` must not be empty.
double median(std::vector<double> times);

}  // namespace mamba3::cli
