#include "ops/round_bf16/round_bf16.h"

#include <algorithm>

#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/linear/round_bf16.h"

namespace mamba3 {

void round_bf16(const RoundBf16Args& args, Context& ctx) {
  constexpr std::int64_t kTaskElements = std::int64_t{1} << 16;
  const OpTimer timer(ctx, "round_bf16");
  check_input(args.count == 0 || (args.values != nullptr && args.rounded != nullptr),
              "round_bf16: values or rounded are missing; expected ", args.count, " of each");
  if (args.count == 0) return;
  if (ctx.gpu()) return round_bf16_cuda(args, ctx);
  ctx.pool().run((args.count + kTaskElements - 1) / kTaskElements, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kTaskElements;
    round_to_bf16(args.values + begin, std::min(kTaskElements, args.count - begin),
                  args.rounded + begin);
  });
}

}  // namespace mamba3
