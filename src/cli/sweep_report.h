// What a sweep has found, for people and for bench/results.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/common.h"

namespace mamba3::cli {

// A training's result.json, which `origin` names in messages. Refuses what is none, as a damaged
// one may be.
Json parse_sweep_result(std::string_view text, const std::string& origin);
// "98.51"
std::string accuracy_text(const Json& result);
// The best of each rotation and width, and of each rotation, as the paper reports it.
std::string sweep_table(const std::vector<Json>& results);
// As `bench --out` writes results: a row for each training.
Json sweep_document(const std::vector<Json>& results, const Context& ctx);

}  // namespace mamba3::cli
