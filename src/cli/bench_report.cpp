#include "cli/bench_report.h"

#include <array>
#include <cstdio>
#include <fstream>

#include "cli/bench_baselines.h"
#include "cli/bench_compare.h"
#include "cli/bench_origin.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "core/gpu.h"
#include "io/atomic_file.h"

namespace mamba3::cli {
namespace {

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with("model name") || line.starts_with("CPU part")) {
      const std::size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "CPU";
}

// `amount` (bytes or FLOPs) of a row is that of one token, or of one timed call.
std::optional<double> giga_per_second(const BenchRow& row, const std::optional<double>& amount) {
  if (!amount) return std::nullopt;
  if (row.unit == "tokens/s") return 1e-9 * *amount * row.value;
  if (row.unit == "us") return 1e-3 * *amount / row.value;
  if (row.unit == "ms") return 1e-6 * *amount / row.value;
  if (row.unit == "s") return 1e-9 * *amount / row.value;
  return std::nullopt;
}

std::string table_line(const std::array<std::string, 9>& cells) {
  // Below 0: to the left.
  constexpr std::array<int, 9> kWidths{-46, 9, -9, 7, 9, 9, 6, 9, 6};
  std::string line;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    char text[128];
    std::snprintf(text, sizeof(text), "%*.80s", kWidths[i], cells[i].c_str());
    line += (line.empty() ? "" : " ") + std::string(text);
  }
  return line + "\n";
}

std::string key_of(const BenchRow& row) {
  return row.name + " " + row.unit;
}

Json text_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

}  // namespace

std::string device_name(const Context& ctx) {
  if (ctx.gpu()) return ctx.gpu()->info().name;
  return str(processor_name(), ", ", ctx.threads(), ctx.threads() == 1 ? " thread" : " threads");
}

BenchReport::BenchReport(const CommonOptions& options, const Context& ctx)
    : json_(options.json),
      quiet_(options.quiet),
      device_(device_name(ctx)),
      on_gpu_(ctx.gpu() != nullptr),
      threads_(ctx.threads()) {}

void BenchReport::read_baselines(const std::string& path) {
  for (const BenchRow& row : parse_results(path, read_text(path)).rows) {
    baselines_[key_of(row)] = row.value;
  }
}

void BenchReport::read_before(const std::string& path) {
  before_ = parse_results(path, read_text(path));
}

void BenchReport::complete(BenchRow& row) const {
  const auto baseline = baselines_.find(key_of(row));
  if (!row.baseline && baseline != baselines_.end()) row.baseline = baseline->second;
  if (!row.baseline && !baselines_for(device_).empty()) row.baseline = authors_figure(row.name);
  if (row.ceiling) row.share_of_ceiling = compare_values(row.value, *row.ceiling, row.unit);
  if (row.baseline) row.ratio = compare_values(row.value, *row.baseline, row.unit);
}

void BenchReport::add_silently(BenchRow row) {
  complete(row);
  rows_.push_back(std::move(row));
}

void BenchReport::add(BenchRow row) {
  complete(row);
  if (!json_) show(row);
  rows_.push_back(std::move(row));
}

void BenchReport::show(const BenchRow& row) {
  if (!header_shown_) {
    std::string header = device_ + "\n";
    const std::string source = baselines_for(device_);
    if (!source.empty()) header += str("baselines: ", source, "\n");
    write_out(header + table_line({"measured", "value", "unit", "GB/s", "GFLOP/s", "ceiling",
                                   "share", "baseline", "ratio"}));
    header_shown_ = true;
  }
  write_out(table_line(
      {row.name, number_cell(row.value), row.unit, number_cell(giga_per_second(row, row.bytes)),
       number_cell(giga_per_second(row, row.flops)), number_cell(row.ceiling),
       number_cell(row.share_of_ceiling), number_cell(row.baseline), number_cell(row.ratio)}));
}

void BenchReport::write(const std::string& text) const {
  if (!json_) write_out(text);
}

Json BenchReport::document() const {
  Json rows = Json::array();
  for (const BenchRow& row : rows_) rows.push_back(row_json(row));
  Json document = {{"command", command_line()}, {"commit", build_commit()}, {"date", today()}};
  if (on_gpu_) document["driver"] = text_or_null(gpu_driver());
  document["device"] = device_;
  document["threads"] = threads_;
  const std::string source = baselines_for(device_);
  if (!source.empty()) document["baselines"] = source;
  document["rows"] = std::move(rows);
  if (before_) document["compare"] = comparison_json(compare_results(*before_, rows_));
  return document;
}

void BenchReport::finish(const std::string& out_path) const {
  if (before_) write(comparison_text(compare_results(*before_, rows_)));
  if (json_) write_json(document());
  if (out_path.empty()) return;
  write_atomically(out_path, document().dump(1) + "\n");
  if (!quiet_) message("mamba3: wrote " + out_path);
}

}  // namespace mamba3::cli
