// train --rates, --seeds, --widths, --ropes: one training of a task for each combination, several
// at once.
#pragma once

#include <string>

#include "cli/cli11_forward.h"

namespace mamba3::cli {

struct TrainCommand;

struct SweepCommand {
  std::string rates, seeds, widths, ropes;  // lists, separated by commas
  int jobs = 0;                             // 0: as many as threads; on a GPU 8
  std::string out;

  // Lists make a sweep.
  bool asked() const {
    return !rates.empty() || !seeds.empty() || !widths.empty() || !ropes.empty();
  }
};

void add_sweep_options(CLI::App& app, SweepCommand& command);
// `app` parsed the command.
int run_sweep(const CLI::App& app, const TrainCommand& command);

}  // namespace mamba3::cli
