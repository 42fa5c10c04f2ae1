// verify: golden files against what this machine computes.
#include "engine/verify.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>

#include "cli/bench_timing.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

struct VerifyCommand {
  CommonOptions common;
  std::vector<std::string> paths;
  bool gradients = false;
};

Json report_json(const VerifyReport& report) {
  const auto number = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json(nullptr);
  };
  Json cases = Json::array();
  for (const VerifyCase& each : report.cases) {
    cases.push_back({{"file", each.file},
                     {"tensor", each.tensor},
                     {"max_rel_error", each.max_rel_error},
                     {"naive_error", each.naive_error},
                     {"bound", each.bound},
                     {"rms_error", number(each.rms_error)},
                     {"authors_rms_error", number(each.authors_rms_error)},
                     {"ok", each.ok}});
  }
  return {{"cases", std::move(cases)}, {"passed", report.passed()}, {"failed", report.failed()}};
}

std::string case_text(const VerifyCase& each) {
  char numbers[128];
  int length = std::snprintf(numbers, sizeof(numbers), "error %.2e  naive %.2e  bound %.2e",
                             each.max_rel_error, each.naive_error, each.bound);
  if (each.rms_error && each.authors_rms_error) {
    std::snprintf(numbers + length, sizeof(numbers) - static_cast<std::size_t>(length),
                  "  rms %.2e  authors %.2e", *each.rms_error, *each.authors_rms_error);
  }
  return str(each.ok ? "ok    " : "FAILED", "  ", numbers, "  ", each.file, ": ", each.tensor,
             "\n");
}

// "out.y (scan)" of "out.y after cut 7 (scan)", "state.ssm (step)" of "cut7.ssm (step)".
std::string kind_of(const std::string& tensor) {
  const std::string name = tensor.substr(0, tensor.find(' '));
  const std::size_t dot = name.find('.');
  const bool state = name.starts_with("state") || name.starts_with("cut");
  return (state ? "state" + name.substr(dot) : name) + tensor.substr(tensor.rfind(' '));
}

// Our errors beside those that the authors' roundings make, for each kind of tensor.
std::string authors_text(const VerifyReport& report) {
  struct Pair {
    std::vector<double> ours, authors;
    double worst = 0;  // ours over the authors'
  };
  std::map<std::string, Pair> kinds;
  for (const VerifyCase& each : report.cases) {
    if (!each.rms_error || !each.authors_rms_error) continue;
    Pair& kind = kinds[kind_of(each.tensor)];
    kind.ours.push_back(*each.rms_error);
    kind.authors.push_back(*each.authors_rms_error);
    if (*each.authors_rms_error > 0) {
      kind.worst = std::max(kind.worst, *each.rms_error / *each.authors_rms_error);
    }
  }
  if (kinds.empty()) return "";
  std::string out =
      "error against float64, root mean square, and what the authors' roundings make it\n"
      "tensor                   median    authors'  at worst ours / theirs\n";
  for (const auto& [name, kind] : kinds) {
    char line[128];
    std::snprintf(line, sizeof(line), "%-22s  %.2e  %.2e  %.3f\n", name.c_str(), median(kind.ours),
                  median(kind.authors), kind.worst);
    out += line;
  }
  return out;
}

int run_verify(const VerifyCommand& command) {
  go_on_without_reader();  // the exit code says whether all is well
  Context ctx = make_context(command.common, choose_device(command.common));
  VerifyOptions options;
  if (command.common.dtype == "bf16") options.dtype = ComputeDType::kBf16;
  options.gradients = command.gradients;
  VerifyReport report;
  ProgressBar bar(command.common, "verifying", "files");
  for (std::size_t i = 0; i < command.paths.size(); ++i) {
    bar.update(static_cast<std::int64_t>(i), std::ssize(command.paths));
    VerifyReport more = verify_goldens({command.paths[i]}, options, ctx);
    std::move(more.cases.begin(), more.cases.end(), std::back_inserter(report.cases));
  }
  check_interrupt();
  bar.clear();
  if (command.common.json) {
    write_json(report_json(report));
  } else {
    for (const VerifyCase& each : report.cases) {
      if (!each.ok || command.common.verbose) write_out(case_text(each));
    }
    write_out(authors_text(report));
    write_out(str(report.passed(), " passed, ", report.failed(), " failed\n"));
  }
  return report.failed() == 0 ? 0 : static_cast<int>(ErrorCode::kBadInput);
}

}  // namespace

Run add_verify(CLI::App& app) {
  auto command = std::make_shared<VerifyCommand>();
  app.add_option("paths", command->paths,
                 "golden files (scan_*, mixer_*), folders of models with golden.safetensors, or "
                 "folders of any of these")
      ->type_name("PATH")
      ->required();
  app.add_flag("--grad", command->gradients,
               "the gradients that files hold, too: of the oracle and, in fp32, of the backward "
               "pass");
  add_common_options(app, command->common);
  return [command] { return run_verify(*command); };
}

}  // namespace mamba3::cli
