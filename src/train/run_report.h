// RUN/report.html: what a training is and its curves, in one file that needs nothing else.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "mamba3/config.h"
#include "train/metrics.h"
#include "train/train_checkpoint.h"

namespace mamba3 {

struct ReportFacts {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;  // "model", "SISO, 12 layers, ..."
};

// Of what is trained, on what and by which version.
ReportFacts report_facts(const std::string& name, const ModelConfig& config,
                         const TrainRecord& record);
// Well-formed XML; curves over steps and over tokens.
std::string report_html(const ReportFacts& facts, const MetricsHistory& history);

// Writes RUN/report.html.
void write_report(const std::filesystem::path& run, const ReportFacts& facts,
                  const MetricsHistory& history);
// The same from what the folder holds: its metrics, and its config and newest checkpoint's record
// where they are there. Refuses a folder without metrics.
void write_report(const std::filesystem::path& run);

}  // namespace mamba3
