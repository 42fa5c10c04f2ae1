// The next token of each of many rows of logits, with the choice of sample_token().
#pragma once

#include <cstdint>

#include "mamba3/context.h"
#include "mamba3/sampling.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// How one row is sampled; as SamplingParams, without penalties. The draw is
// uniform_draw(seed, stream, position).
struct RowSampling {
  float temperature = 0;  // 0: greedy
  float top_p = 1;
  float min_p = 0;
  std::int32_t top_k = 0;
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
  std::uint64_t position = 0;
};

struct SampleRowsArgs {
  TensorView<const float, 2> logits;  // [rows, padded vocabulary]; the padding is not looked at
  std::int64_t vocab = 0;             // true vocabulary
  RowSampling* rows = nullptr;        // [rows]; each position is advanced by one
  std::int32_t* next_ids = nullptr;   // [rows] the chosen ids; 0 for a row that has none
  SampledToken* out = nullptr;        // [rows]
  bool alone = false;  // on a GPU one block a row, as cards without clusters do it: for tests
};

// A row whose logits are no distribution says so in its status and changes nothing in the others.
// The parameters must be what sample_token() takes: whoever fills `rows` has checked them. Equal
// logits give the id of sample_token(), except where the rounding of a sum decides.
void sample_rows(const SampleRowsArgs& args, Context& ctx);

}  // namespace mamba3
