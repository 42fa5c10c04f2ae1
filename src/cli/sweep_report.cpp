#include "cli/sweep_report.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "cli/bench_origin.h"
#include "cli/bench_report.h"
#include "core/check.h"
#include "core/rounded.h"
#include "io/json.h"

namespace mamba3::cli {
namespace {

double accuracy(const Json& result) {
  return result.at("accuracy").get<double>();
}

std::string line(const char* rope, const std::string& width,
                 const std::vector<const Json*>& results) {
  const auto less = [](const Json* a, const Json* b) { return accuracy(*a) < accuracy(*b); };
  std::vector<const Json*> sorted = results;
  std::ranges::stable_sort(sorted, less);
  const Json& best = *sorted.back();
  const auto diverged = std::ranges::count_if(
      sorted, [](const Json* result) { return result->contains("diverged"); });
  char text[160];
  std::snprintf(text, sizeof(text), "%-15s %6s %6zu %9lld %8s %8s %10g %6llu\n", rope,
                width.c_str(), sorted.size(), static_cast<long long>(diverged),
                accuracy_text(*sorted[(sorted.size() - 1) / 2]).c_str(),
                accuracy_text(best).c_str(), best.at("rate").get<double>(),
                static_cast<unsigned long long>(best.at("seed").get<std::uint64_t>()));
  return text;
}

}  // namespace

Json parse_sweep_result(std::string_view text, const std::string& origin) {
  parse_json_limited(text, origin);
  Json found = Json::parse(text);  // in the order of its keys
  const auto has = [&](const char* key, bool (Json::*is)() const noexcept) {
    check_input(found.is_object() && found.contains(key) && (found[key].*is)(), origin,
                " is damaged: it has no \"", key, "\"; expected the result of a training");
  };
  for (const char* key : {"name", "rope"}) has(key, &Json::is_string);
  for (const char* key : {"width", "seed", "steps", "batch"}) has(key, &Json::is_number_integer);
  for (const char* key : {"rate", "accuracy"}) has(key, &Json::is_number);
  has("training", &Json::is_object);
  return found;
}

std::string accuracy_text(const Json& result) {
  return rounded(accuracy(result), 2);
}

std::string sweep_table(const std::vector<Json>& results) {
  std::vector<std::string> ropes;  // in their order
  for (const Json& result : results) {
    const std::string rope = result.at("rope");
    if (std::ranges::find(ropes, rope) == ropes.end()) ropes.push_back(rope);
  }
  std::string text =
      "rope             width   runs  diverged   median     best    of rate   seed\n";
  for (const std::string& rope : ropes) {
    std::map<std::int64_t, std::vector<const Json*>> by_width;
    std::vector<const Json*> all;
    for (const Json& result : results) {
      if (result.at("rope") != rope) continue;
      by_width[result.at("width").get<std::int64_t>()].push_back(&result);
      all.push_back(&result);
    }
    for (const auto& [width, some] : by_width) {
      text += line(rope.c_str(), std::to_string(width), some);
    }
    if (by_width.size() > 1) text += line(rope.c_str(), "all", all);
  }
  return text;
}

Json sweep_document(const std::vector<Json>& results, const Context& ctx) {
  Json rows = Json::array();
  for (const Json& result : results) {
    Json row{{"name", result.at("name")},
             {"value", accuracy(result)},
             {"unit", "scaled accuracy"},
             {"ceiling", 100.0}};
    row.update(result);
    rows.push_back(std::move(row));
  }
  return {{"command", command_line()},
          {"commit", build_commit()},
          {"date", today()},
          {"device", device_name(ctx)},
          {"rows", std::move(rows)}};
}

}  // namespace mamba3::cli
