// A scan_* or mixer_* golden file in memory, its shapes checked against each other.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "ops/mamba3_common/mamba3_args.h"
#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3 {

struct Golden {
  std::string file;
  Mamba3Dims dims;
  double a_floor = 1e-4;
  bool mixer = false;      // in.u goes through in_proj and out_proj; otherwise in.* are the columns
  std::int64_t width = 0;  // d of a mixer
  // Sequences one after the other: the rows of a batch, or those of cu_seqlens. bounds [q + 1].
  std::vector<std::int64_t> bounds;
  std::vector<std::int64_t> cuts;  // tokens into each sequence
  // By its name in the file.
  std::map<std::string, std::vector<double>> tensors;

  std::int64_t sequences() const { return static_cast<std::int64_t>(bounds.size()) - 1; }
  std::int64_t inner() const { return dims.heads * dims.head_dim; }
  std::int64_t shared() const { return dims.rank * dims.groups * dims.state; }  // of B, of C
  std::int64_t projected() const {
    return 2 * inner() + 2 * shared() + 3 * dims.heads + dims.angles;
  }
  std::int64_t out_width() const { return mixer ? width : inner(); }
  bool has_gradients() const { return tensors.contains("cot.y"); }
  const std::vector<double>& at(const std::string& name) const;
};

// Refuses what does not fit together, naming the tensor.
Golden read_golden(const std::filesystem::path& path);

// State i of `prefix` ("state0", "state1", "cut7"); zeros when the file has none.
Mamba3RefState<double> golden_state(const Golden& golden, const std::string& prefix,
                                    std::int64_t sequence);

}  // namespace mamba3
