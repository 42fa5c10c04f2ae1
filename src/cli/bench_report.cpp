#include "cli/bench_report.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>

#include "cli/terminal.h"
#include "core/check.h"
#include "core/gpu.h"
#include "io/atomic_file.h"

namespace mamba3::cli {
namespace {

// A time or a size is better when it is smaller, a rate when it is larger.
bool smaller_is_better(const std::string& unit) {
  return unit == "s" || unit == "ms" || unit == "us" || unit == "bytes";
}

double share(double value, double reference, const std::string& unit) {
  return smaller_is_better(unit) ? reference / value : value / reference;
}

Json optional_json(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

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

std::string cell(const std::optional<double>& value) {
  if (!value) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", *value);
  return text;
}

// `amount` (bytes or FLOPs) of a row is that of one token, or of one timed call.
std::optional<double> giga_per_second(const BenchRow& row, const std::optional<double>& amount) {
  if (!amount) return std::nullopt;
  if (row.unit == "tokens/s") return 1e-9 * *amount * row.value;
  if (row.unit == "us") return 1e-3 * *amount / row.value;
  if (row.unit == "s") return 1e-9 * *amount / row.value;
  return std::nullopt;
}

std::string table_line(const std::array<std::string, 8>& cells) {
  constexpr std::array<int, 8> kWidths{-46, 9, -9, 7, 8, 9, 7, 7};  // below 0: to the left
  std::string line;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    char text[128];
    std::snprintf(text, sizeof(text), "%*.80s", kWidths[i], cells[i].c_str());
    line += (line.empty() ? "" : " ") + std::string(text);
  }
  return line + "\n";
}

}  // namespace

std::string device_name(const Context& ctx) {
  if (ctx.gpu()) return ctx.gpu()->info().name;
  return str(processor_name(), ", ", ctx.threads(), ctx.threads() == 1 ? " thread" : " threads");
}

double median(std::vector<double> times) {
  const std::size_t middle = times.size() / 2;
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(middle), times.end());
  return times[middle];
}

BenchReport::BenchReport(const CommonOptions& options, const Context& ctx)
    : json_(options.json),
      quiet_(options.quiet),
      device_(device_name(ctx)),
      threads_(ctx.threads()) {}

void BenchReport::read_baselines(const std::string& path) {
  const Json document = Json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  const bool rows =
      document.is_object() && document.contains("rows") && document["rows"].is_array();
  check_input(
      rows, path,
      " holds no list of rows; expected a file that bench --out or eager_torch.py --json wrote");
  for (const Json& row : document["rows"]) {
    const bool whole = row.is_object() && row.contains("name") && row["name"].is_string() &&
                       row.contains("unit") && row["unit"].is_string() && row.contains("value") &&
                       row["value"].is_number();
    check_input(whole, path,
                " holds a row without name, unit and value; expected a file of bench results");
    baselines_[row["name"].get<std::string>() + row["unit"].get<std::string>()] = row["value"];
  }
}

void BenchReport::add(BenchRow row) {
  const auto baseline = baselines_.find(row.name + row.unit);
  if (!row.baseline && baseline != baselines_.end()) row.baseline = baseline->second;
  if (row.ceiling) row.share_of_ceiling = share(row.value, *row.ceiling, row.unit);
  if (row.baseline) row.ratio = share(row.value, *row.baseline, row.unit);
  if (!json_) show(row);
  rows_.push_back(std::move(row));
}

void BenchReport::show(const BenchRow& row) {
  if (rows_.empty()) {
    write_out(
        device_ + "\n" +
        table_line({"measured", "value", "unit", "GB/s", "GFLOP/s", "ceiling", "share", "ratio"}));
  }
  write_out(table_line({row.name, cell(row.value), row.unit, cell(giga_per_second(row, row.bytes)),
                        cell(giga_per_second(row, row.flops)), cell(row.ceiling),
                        cell(row.share_of_ceiling), cell(row.ratio)}));
}

Json BenchReport::document() const {
  Json rows = Json::array();
  for (const BenchRow& row : rows_) {
    rows.push_back({{"name", row.name},
                    {"value", row.value},
                    {"unit", row.unit},
                    {"bytes", optional_json(row.bytes)},
                    {"flops", optional_json(row.flops)},
                    {"ceiling", optional_json(row.ceiling)},
                    {"share_of_ceiling", optional_json(row.share_of_ceiling)},
                    {"baseline", optional_json(row.baseline)},
                    {"ratio", optional_json(row.ratio)}});
  }
  return {{"device", device_}, {"threads", threads_}, {"rows", std::move(rows)}};
}

void BenchReport::finish(const std::string& out_path) const {
  if (json_) write_json(document());
  if (out_path.empty()) return;
  AtomicFile file(out_path);
  file.write(document().dump(2) + "\n");
  file.commit();
  if (!quiet_) message("mamba3: wrote " + out_path);
}

}  // namespace mamba3::cli
