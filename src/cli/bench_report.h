// What `bench` measures, as rows with their ceilings: for people, for --json and for --out.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/bench_rows.h"
#include "cli/common.h"

namespace mamba3::cli {

class BenchReport {
 public:
  BenchReport(const CommonOptions& options, const Context& ctx);

  // Rows of the same name and unit in this file become the baselines of rows that have none.
  void read_baselines(const std::string& path);
  // Results to compare with at the end.
  void read_before(const std::string& path);

  // Rows are shown as they come, unless --json asks for the document. A row without a baseline gets
  // the authors' figure of its name, where there is one and it was measured on such a card.
  void add(BenchRow row);
  // The same, for a row that a text written by write() shows.
  void add_silently(BenchRow row);
  // For people only.
  void write(const std::string& text) const;
  void finish(const std::string& out_path) const;

 private:
  void complete(BenchRow& row) const;
  void show(const BenchRow& row);
  Json document() const;

  bool json_;
  bool quiet_;
  bool header_shown_ = false;
  std::string device_;
  bool on_gpu_;
  int threads_;
  std::vector<BenchRow> rows_;
  std::map<std::string, double> baselines_;  // by name and unit
  std::optional<ResultFile> before_;
};

// "Intel(R) Xeon(R) ..., 2 threads", or the name of the GPU
std::string device_name(const Context& ctx);

}  // namespace mamba3::cli
