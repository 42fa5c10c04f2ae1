// verify: golden files against what this machine computes.
#include "engine/verify.h"

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

struct VerifyCommand {
  CommonOptions common;
  std::vector<std::string> paths;
};

Json report_json(const VerifyReport& report) {
  Json cases = Json::array();
  for (const VerifyCase& each : report.cases) {
    cases.push_back({{"file", each.file},
                     {"tensor", each.tensor},
                     {"max_rel_error", each.max_rel_error},
                     {"naive_error", each.naive_error},
                     {"bound", each.bound},
                     {"ok", each.ok}});
  }
  return {{"cases", std::move(cases)}, {"passed", report.passed()}, {"failed", report.failed()}};
}

std::string case_text(const VerifyCase& each) {
  char numbers[96];
  std::snprintf(numbers, sizeof(numbers), "error %.2e  naive %.2e  bound %.2e", each.max_rel_error,
                each.naive_error, each.bound);
  return str(each.ok ? "ok    " : "FAILED", "  ", numbers, "  ", each.file, ": ", each.tensor,
             "\n");
}

int run_verify(const VerifyCommand& command) {
  Context ctx = make_context(command.common, choose_device(command.common));
  VerifyOptions options;
  if (command.common.dtype == "bf16") options.dtype = ComputeDType::kBf16;
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
  add_common_options(app, command->common);
  return [command] { return run_verify(*command); };
}

}  // namespace mamba3::cli
