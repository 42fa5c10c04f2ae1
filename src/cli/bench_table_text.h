// The paper's tables 6 and 7 as text, our columns beside the authors' and the paper's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mamba3::cli {

// Times of one decode step, ms. Nothing in a cell: not measured, or not there yet.
struct Table6Row {
  std::string mixer;  // "siso", "mimo"
  std::string dtype;  // of the states: "fp32", "bf16"
  std::int64_t state = 0;
  std::optional<double> layer, kernel;  // ours: in_proj, step and out_proj; the step alone
  std::optional<double> authors_kernel, paper_layer;
};

// Seconds to read n tokens, and to read n and decode n more.
struct Table7Row {
  std::string model;
  std::int64_t tokens = 0;
  double prefill = 0, total = 0;
  bool ran = false;  // all n tokens were decoded; otherwise n times the time of a step
  std::optional<double> authors_prefill, authors_total, paper_prefill, paper_total;

  // The authors' time over ours; the paper's where theirs was not measured.
  std::optional<double> prefill_ratio() const;
  std::optional<double> total_ratio() const;
};

std::string table6_text(const std::vector<Table6Row>& rows, std::int64_t batch);
std::string table7_text(const std::vector<Table7Row>& rows, std::int64_t batch,
                        std::int64_t cycle_steps);

}  // namespace mamba3::cli
