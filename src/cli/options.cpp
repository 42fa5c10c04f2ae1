#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "core/check.h"
#include "core/nearest.h"

namespace mamba3::cli {
namespace {

std::string environment_name(const std::string& long_name) {
  std::string name = "MAMBA3_" + long_name;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  return name;
}

std::optional<std::int64_t> to_whole(const std::string& text) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc{} || parsed.ptr != end) return std::nullopt;
  return value;
}

// A variable of a script that is not set would otherwise mean that the option was not given.
CLI::Validator named() {
  return CLI::Validator(
      [](std::string& text) {
        return text.empty() ? std::string(
                                  "found an empty name; expected the name of a file or "
                                  "folder")
                            : std::string();
      },
      "");
}

// `text` as a finite number, wherever `fits` says so.
template <class Fits>
std::string refuse_number(const std::string& text, const Fits& fits, const std::string& expected) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  const bool ok = parsed.ec == std::errc{} && parsed.ptr == end && std::isfinite(value);
  if (ok && fits(value)) return {};
  return str("found '", text, "'; expected ", expected);
}

}  // namespace

void add_common_options(CLI::App& app, CommonOptions& options) {
  const char* group = "Common options";
  app.add_option("-m,--model", options.model,
                 "folder with config.json, weights and tokenizer.json (default: the bundled model)")
      ->type_name("PATH")
      ->group(group);
  app.add_option("--tokenizer", options.tokenizer,
                 "tokenizer.json or tiktoken rank file, when it is not in the model's folder")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--device", options.device, "auto, cpu or cuda[:N]")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  app.add_option("--dtype", options.dtype,
                 "auto, fp32 (exact) or bf16 (inputs of every linear rounded); auto: as the "
                 "weights are stored")
      ->type_name("NAME")
      ->check(one_of({"auto", "fp32", "bf16"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("-t,--threads", options.threads, "0: one per processor")
      ->type_name("N")
      ->check(whole_number(0, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("-s,--seed", options.seed, "of random numbers (default: a new one each time)")
      ->type_name("N")
      ->check(seed_number())
      ->group(group);
  app.add_option("--a-activation", options.a_activation,
                 "auto, heavy-tail or softplus; auto: what the file records, else heavy-tail")
      ->type_name("NAME")
      ->check(one_of({"auto", "heavy-tail", "softplus"}))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--strict", options.strict, "refuse weights that hold NaN or infinity")
      ->group(group);
  app.add_flag("--same-bits", options.same_bits,
               "on a GPU: a sequence's bits do not depend on what is computed beside it (slower)")
      ->group(group);
  app.add_flag("--json", options.json, "results as JSON on stdout")->group(group);
  app.add_flag("-q,--quiet", options.quiet, "no messages, no progress")->group(group);
  app.add_flag("-v,--verbose", options.verbose, "more messages, timings")->group(group);
}

void finish_options(CLI::App& app, bool from_environment) {
  for (CLI::Option* option : app.get_options()) {
    const auto& names = option->get_lnames();
    if (names.empty() || names[0] == "help" || names[0] == "version") continue;
    if (from_environment) option->envname(environment_name(names[0]));
    const std::string type = option->get_type_name();
    if (type == "FILE" || type == "DIR" || type == "PATH") option->check(named());
    if (option->get_multi_option_policy() == CLI::MultiOptionPolicy::Throw) option->take_last();
  }
}

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  const std::string expected = most == INT64_MAX ? str("a whole number from ", least)
                                                 : str("a whole number from ", least, " to ", most);
  return CLI::Validator(
      [=](std::string& text) {
        const auto value = to_whole(text);
        if (value && *value >= least && *value <= most) return std::string();
        return str("found '", text, "'; expected ", expected);
      },
      "");
}

CLI::Validator number(double least, double most) {
  return CLI::Validator(
      [=](std::string& text) {
        return refuse_number(
            text, [=](double value) { return value >= least && value <= most; },
            str("a number from ", least, " to ", most));
      },
      "");
}

CLI::Validator number_above_zero(double most) {
  return CLI::Validator(
      [=](std::string& text) {
        return refuse_number(
            text, [=](double value) { return value > 0 && value <= most; },
            str("a number above 0, at most ", most));
      },
      "");
}

CLI::Validator seed_number() {
  return CLI::Validator(
      [](std::string& text) {
        std::uint64_t value = 0;
        const char* end = text.data() + text.size();
        const auto parsed = std::from_chars(text.data(), end, value);
        if (parsed.ec == std::errc{} && parsed.ptr == end) return std::string();
        return str("found '", text, "'; expected a whole number from 0 to ", UINT64_MAX);
      },
      "");
}

CLI::Validator one_of(const std::vector<std::string>& names) {
  return CLI::Validator(
      [=](std::string& text) {
        if (std::find(names.begin(), names.end(), text) != names.end()) return std::string();
        std::string list;
        for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
        const std::string nearest = nearest_name(text, names);
        return str("found '", text, "'; expected one of ", list,
                   nearest.empty() ? "" : "; perhaps " + nearest);
      },
      "");
}

std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> out;
  for (std::size_t begin = 0; !list.empty() && begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    out.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

std::vector<std::int64_t> parse_numbers(const std::string& option, const std::string& text,
                                        std::int64_t least, std::int64_t most) {
  const std::string expected =
      str("whole numbers from ", least, most == INT64_MAX ? "" : str(" to ", most),
          " separated by commas; correct the option");
  std::vector<std::int64_t> numbers;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::size_t first = begin, last = end;
    while (first < last && text[first] == ' ') ++first;
    while (last > first && text[last - 1] == ' ') --last;
    const std::string part = text.substr(first, last - first);
    const auto value = to_whole(part);
    if (end + 1 == text.size()) {
      fail(ErrorCode::kUsage, option, " ends with a comma; expected ", expected);
    }
    if (!value || *value < least || *value > most) {
      fail(ErrorCode::kUsage, option, " has '", part, "' at character ", begin, "; expected ",
           expected);
    }
    numbers.push_back(*value);
    begin = end + 1;
  }
  return numbers;
}

}  // namespace mamba3::cli
