#include "cli/bench_compare.h"

#include <cstdio>
#include <map>

#include "core/check.h"

namespace mamba3::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string label(const BenchRow& row) {
  return row.name + " (" + row.unit + ")";
}

// Where the time goes is neither good nor bad.
bool has_a_good_way(const std::string& unit) {
  return !unit.starts_with('%');
}

std::string line(const std::string& name, const std::string& unit, const std::string& before,
                 const std::string& now, const std::string& ratio) {
  char text[256];
  std::snprintf(text, sizeof(text), "%-50.80s %-9.20s %10s %10s %7s\n", name.c_str(), unit.c_str(),
                before.c_str(), now.c_str(), ratio.c_str());
  return text;
}

}  // namespace

Comparison compare_results(ResultFile before, const std::vector<BenchRow>& now) {
  std::map<std::string, double> values;
  for (const BenchRow& row : before.rows) values.emplace(label(row), row.value);
  Comparison out;
  for (const BenchRow& row : now) {
    const auto found = values.find(label(row));
    if (found == values.end()) {
      out.only_now.push_back(label(row));
      continue;
    }
    ComparedRow compared{row.name, row.unit, found->second, row.value, std::nullopt};
    if (has_a_good_way(row.unit)) {
      compared.ratio = compare_values(row.value, found->second, row.unit);
    }
    out.rows.push_back(std::move(compared));
    values.erase(found);
  }
  for (const BenchRow& row : before.rows) {
    if (values.erase(label(row)) > 0) out.only_before.push_back(label(row));
  }
  before.rows.clear();
  out.before = std::move(before);
  return out;
}

std::string comparison_text(const Comparison& comparison) {
  const ResultFile& file = comparison.before;
  std::string text = "\ncompared with " + file.path;
  for (const std::string& part : {file.commit, file.date, file.device}) {
    if (!part.empty()) text += ", " + part;
  }
  text += "\n" + line("measured", "unit", "before", "now", "ratio");
  for (const ComparedRow& row : comparison.rows) {
    text += line(row.name, row.unit, number_cell(row.before), number_cell(row.now),
                 number_cell(row.ratio));
  }
  for (const std::string& name : comparison.only_before) text += "only before: " + name + "\n";
  for (const std::string& name : comparison.only_now) text += "only now: " + name + "\n";
  return text;
}

Json comparison_json(const Comparison& comparison) {
  Json rows = Json::array();
  for (const ComparedRow& row : comparison.rows) {
    rows.push_back({{"name", row.name},
                    {"unit", row.unit},
                    {"before", row.before},
                    {"now", row.now},
                    {"ratio", row.ratio ? Json(*row.ratio) : Json(nullptr)}});
  }
  return {{"file", comparison.before.path},
          {"device", comparison.before.device},
          {"commit", comparison.before.commit},
          {"date", comparison.before.date},
          {"rows", std::move(rows)},
          {"only_before", comparison.only_before},
          {"only_now", comparison.only_now}};
}

}  // namespace mamba3::cli
