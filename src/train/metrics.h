// A run's figures as JSON lines, one for each step and each evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <istream>
#include <nlohmann/json_fwd.hpp>
#include <string>
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

  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  // At once on disk. What cannot be written is tried again with the next line: figures stop no
  // training. Whether all is there.
  bool write(const nlohmann::ordered_json& line);
  // Tries again what could not be written.
  bool flush();
  // Of the lines that stayed and those that were written.
  const MetricsHistory& history() const { return history_; }

 private:
  int fd_;
  std::string waiting_;  // to be written
  MetricsHistory history_;
};

}  // namespace mamba3
