// generate --interactive: turns over one state.
#pragma once

#include "cli/generate.h"

namespace mamba3::cli {

// `request` brings the options and perhaps a loaded state; a prompt that is not empty is answered
// first. Every line of stdin is one turn; its end is the end.
int run_turns(const GenerateOptions& options, const Prompt& prompt, GenerateRequest request,
              const LoadedModel& loaded, Context& ctx);

}  // namespace mamba3::cli
