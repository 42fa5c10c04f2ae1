#include "ops/embedding/embedding_cpu.h"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kRowsPerTask = 16;

void widen_row(const std::byte* row, DType dtype, std::int64_t d, float* y) {
  if (dtype == DType::kF32) {
    std::memcpy(y, row, static_cast<std::size_t>(d) * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < d; ++i) {
    Bf16 value{};
    std::memcpy(&value, row + i * static_cast<std::int64_t>(sizeof(Bf16)), sizeof(Bf16));
    y[i] = to_float(value);
  }
}

}  // namespace

void embedding_cpu(const EmbeddingArgs& args, Context& ctx) {
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  const std::int64_t d = args.table.shape[1];
  const std::int64_t row_bytes = d * dtype_bytes(args.table.dtype);
  ctx.pool().run((rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (std::int64_t row = task * kRowsPerTask; row < end; ++row) {
      widen_row(args.table.data + args.ids[row] * row_bytes, args.table.dtype, d, &args.y(row, 0));
    }
  });
}

}  // namespace mamba3
