// Golden files against what this machine computes: `mamba3 verify`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "mamba3/context.h"
#include "mamba3/model.h"

namespace mamba3 {

struct VerifyOptions {
  ComputeDType dtype = ComputeDType::kF32;
  bool gradients = false;  // those that a file holds, too
};

// One tensor of one file, as one path computes it. Names: "out.y (scan)", "state1.ssm (step)",
// "cut7.k (oracle)", "out.y after cut 7 (scan)", "logits (prefill)". Paths: oracle, the plain
// recurrence in double; step, token by token; scan or prefill, many tokens at once.
struct VerifyCase {
  std::string file;
  std::string tensor;
  // Against the file's own expectation: the largest difference over the largest value; of angles
  // the largest difference in radians, on the circle. The largest double where one side is NaN or
  // infinite and the other is not.
  double max_rel_error = 0;
  double naive_error = 0;  // the same of a plain run in the same precision
  double bound = 0;        // core/tolerance.h
  bool ok = false;         // within the bound, and not behind the authors
  // Root mean square of the same differences over that of the expectation, and what the roundings
  // of the authors' kernels make it (mamba3_authors_ref.h). Ours may not be larger. Empty where a
  // case has no such thing: the oracle, and results that must agree bit for bit.
  std::optional<double> rms_error = std::nullopt;
  std::optional<double> authors_rms_error = std::nullopt;
};

struct VerifyReport {
  std::vector<VerifyCase> cases;
  std::int64_t failed() const;
  std::int64_t passed() const { return static_cast<std::int64_t>(cases.size()) - failed(); }
};

// A path is a scan_* or mixer_* file, the golden.safetensors of a model's folder, such a folder, or
// a folder of any of these. Throws for what is no golden; a golden that is not met is a case with
// ok = false.
VerifyReport verify_goldens(const std::vector<std::filesystem::path>& paths,
                            const VerifyOptions& options, Context& ctx);

}  // namespace mamba3
