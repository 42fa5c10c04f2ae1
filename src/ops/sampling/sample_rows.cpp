#include "ops/sampling/sample_rows.h"

#include <cmath>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"

namespace mamba3 {
namespace {

void check(const SampleRowsArgs& args) {
  const auto& logits = args.logits;
  check_input(args.vocab >= 1 && args.vocab <= std::numeric_limits<std::int32_t>::max() &&
                  args.vocab <= logits.shape[1],
              "sampling: a vocabulary of ", args.vocab, " in logits ", shape_string(logits.shape),
              "; expected at least 1, and no more than a row holds");
  check_input(logits.stride[1] == 1 || logits.shape[1] <= 1,
              "sampling: the inner stride of the logits is ", logits.stride[1], "; expected 1");
}

// NaN and +infinity; or nothing but -infinity.
SampleStatus status_of(std::span<const float> logits) {
  bool possible = false;
  for (const float logit : logits) {
    if (!(logit < std::numeric_limits<float>::infinity())) return SampleStatus::kNotFinite;
    possible = possible || logit > -std::numeric_limits<float>::infinity();
  }
  return possible ? SampleStatus::kOk : SampleStatus::kNoToken;
}

void sample_row(const SampleRowsArgs& args, std::int64_t row) {
  const std::span<const float> logits(&args.logits(row, 0), static_cast<std::size_t>(args.vocab));
  RowSampling& how = args.rows[row];
  SampledToken& out = args.out[row];
  out = {-1, 0, status_of(logits)};
  if (out.status == SampleStatus::kOk) {
    SamplingParams params;
    params.temperature = how.temperature;
    params.top_k = how.top_k;
    params.top_p = how.top_p;
    params.min_p = how.min_p;
    const Sample sample =
        sample_token(logits, {}, params, uniform_draw(how.seed, how.stream, how.position));
    out.id = sample.id;
    out.logprob = sample.logprob;
  }
  args.next_ids[row] = out.id < 0 ? 0 : out.id;
  ++how.position;
}

}  // namespace

void sample_rows(const SampleRowsArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "sampling");
  check(args);
  if (args.logits.shape[0] == 0) return;
  if (ctx.gpu()) return sample_rows_cuda(args, ctx);
  ctx.pool().run(args.logits.shape[0], [&](std::int64_t row, int) { sample_row(args, row); });
}

}  // namespace mamba3
