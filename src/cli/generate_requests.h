// generate --requests: many prompts from JSON lines, decoded together.
#pragma once

#include "cli/generate.h"

namespace mamba3::cli {

// `defaults` are the options of the command line. The exit code: 1 when a request failed.
int run_requests(const GenerateOptions& options, const GenerateRequest& defaults,
                 const LoadedModel& loaded, Context& ctx);

}  // namespace mamba3::cli
