// A run's figures as JSON lines, one for each step and each evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json_fwd.hpp>

namespace mamba3 {

class MetricsFile {
 public:
  // Of what is there, lines of steps up to `last_step` stay: a run that is continued has not made
  // the later ones yet.
  MetricsFile(const std::filesystem::path& path, std::int64_t last_step);

  // At once on disk. A line that cannot be written is left out: figures stop no training.
  void write(const nlohmann::ordered_json& line);

 private:
  std::ofstream file_;
};

}  // namespace mamba3
