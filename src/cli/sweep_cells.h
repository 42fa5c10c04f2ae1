// Which trainings a sweep is made of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/train.h"

namespace mamba3::cli {

// One of them.
struct SweepCell {
  std::string rope;
  std::int64_t width = 0;
  double rate = 0;
  std::uint64_t seed = 0;

  std::string name() const;  // "rope=none/width=32/rate=0.001/seed=0"
  std::filesystem::path folder(const std::filesystem::path& sweep) const;
};

// All combinations, seeds fastest; what has no list is as for a single training.
std::vector<SweepCell> sweep_cells(const TrainCommand& command);
// The training of one of them in the sweep's folder: from its beginning or from its last
// checkpoint.
TrainCommand cell_command(const TrainCommand& sweep, const std::filesystem::path& folder,
                          const SweepCell& cell);

}  // namespace mamba3::cli
