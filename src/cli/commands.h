// Every command: declares its options on `app` and returns what runs it.
#pragma once

#include <functional>

#include "cli/cli11_forward.h"
#include "cli/options.h"

namespace mamba3::cli {

// The result is the exit code.
using Run = std::function<int()>;

Run add_generate(CLI::App& app);
Run add_score(CLI::App& app);
Run add_tokenize(CLI::App& app);
Run add_inspect(CLI::App& app);
Run add_convert(CLI::App& app);
Run add_init(CLI::App& app);
Run add_train(CLI::App& app);
Run add_verify(CLI::App& app);
Run add_bench(CLI::App& app);

}  // namespace mamba3::cli
