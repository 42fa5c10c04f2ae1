// Declaring options: those of every command, the environment, and validators.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/cli11_forward.h"
#include "cli/common.h"

namespace mamba3::cli {

void add_common_options(CLI::App& app, CommonOptions& options);
// For all options at once: if `from_environment`, names the environment variable (--top-k is
// MAMBA3_TOP_K); lets the last of repeated values count; refuses names of files that are empty.
void finish_options(CLI::App& app, bool from_environment);

// An option that was not given leaves what is there.
template <class T>
void set(T& to, const std::optional<T>& given) {
  if (given) to = *given;
}

// Validators whose messages say what was expected.
CLI::Validator whole_number(std::int64_t least, std::int64_t most = INT64_MAX);
CLI::Validator number(double least, double most);
CLI::Validator number_above_zero(double most);
// Up to 2^64 - 1.
CLI::Validator seed_number();
CLI::Validator one_of(const std::vector<std::string>& names);
// "a,b,c"; nothing of an empty list.
std::vector<std::string> split_list(const std::string& list);
// "1,8,128", each from `least` to `most`.
std::vector<std::int64_t> parse_numbers(const std::string& option, const std::string& text,
                                        std::int64_t least, std::int64_t most = INT64_MAX);

}  // namespace mamba3::cli
