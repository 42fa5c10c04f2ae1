#include "cli/bench_rows.h"

#include <cstdio>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3::cli {
namespace {

using Json = nlohmann::ordered_json;

Json optional_json(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

std::string text_at(const Json& object, const char* key) {
  return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : "";
}

}  // namespace

bool smaller_is_better(const std::string& unit) {
  return unit == "s" || unit == "ms" || unit == "us" || unit == "bytes" || unit == "GB" ||
         unit == "x";
}

double compare_values(double value, double reference, const std::string& unit) {
  return smaller_is_better(unit) ? reference / value : value / reference;
}

Json row_json(const BenchRow& row) {
  Json out = {{"name", row.name},
              {"value", row.value},
              {"unit", row.unit},
              {"bytes", optional_json(row.bytes)},
              {"flops", optional_json(row.flops)},
              {"ceiling", optional_json(row.ceiling)},
              {"share_of_ceiling", optional_json(row.share_of_ceiling)},
              {"baseline", optional_json(row.baseline)},
              {"ratio", optional_json(row.ratio)}};
  if (row.paper) out["paper"] = *row.paper;
  return out;
}

ResultFile parse_results(const std::string& path, const std::string& text) {
  const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const bool rows =
      document.is_object() && document.contains("rows") && document["rows"].is_array();
  check_input(rows, quote(path),
              " holds no list of rows; expected a file that bench --out or eager_torch.py --json "
              "wrote; name another file");
  ResultFile file;
  file.path = path;
  file.device = text_at(document, "device");
  file.commit = text_at(document, "commit");
  file.date = text_at(document, "date");
  for (const Json& row : document["rows"]) {
    const bool whole = row.is_object() && row.contains("name") && row["name"].is_string() &&
                       row.contains("unit") && row["unit"].is_string() && row.contains("value") &&
                       row["value"].is_number();
    check_input(whole, quote(path),
                " holds a row without name, unit and value; expected a file of bench results; name "
                "another file");
    BenchRow out;
    out.name = row["name"].get<std::string>();
    out.unit = row["unit"].get<std::string>();
    out.value = row["value"].get<double>();
    file.rows.push_back(std::move(out));
  }
  return file;
}

std::string number_cell(const std::optional<double>& value) {
  if (!value) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", *value);
  return text;
}

}  // namespace mamba3::cli
