// A run's figures as JSON lines, one for each step and each evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <istream>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace mamba3 {

// What was no number is NaN.
struct StepFigures {
  std::int64_t step = 0;
  double tokens = 0;  // read with this step since the beginning
  double loss = 0, rate = 0, norm = 0;
  double tokens_per_s = 0;
};
struct HeldOutFigure {
  std::int64_t step = 0;
  double tokens = 0;  // read before it
  double loss = 0, accuracy = 0;
};
struct MetricsHistory {
  std::vector<StepFigures> steps;
  std::vector<HeldOutFigure> evaluations;

  // Of a line: whether it is one of figures.
  bool add(const nlohmann::json& line);
};

// Of a run's metrics.jsonl. Lines that hold no figures are passed over, as one that a killed run
// left unfinished; a missing file has none.
MetricsHistory read_metrics(const std::filesystem::path& path);
MetricsHistory read_metrics(std::istream& lines);

class MetricsFile {
 public:
  // Of what is there, lines of steps up to `last_step` stay: a run that is continued has not made
  // the later ones yet.
  MetricsFile(const std::filesystem::path& path, std::int64_t last_step);

  // At once on disk. A line that cannot be written is left out: figures stop no training.
  void write(const nlohmann::ordered_json& line);
  // Of the lines that stayed and those that were written.
  const MetricsHistory& history() const { return history_; }

 private:
  std::ofstream file_;
  MetricsHistory history_;
};

}  // namespace mamba3
