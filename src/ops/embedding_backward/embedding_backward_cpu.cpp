// Rows are sorted by their id and, among equals, by their place; each id is one task's alone.
#include "ops/embedding_backward/embedding_backward_cpu.h"

#include <algorithm>

#include "core/arena.h"
#include "core/thread_pool.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kRowsPerTask = 32;

// An id above the row that has it.
using Key = std::uint64_t;

Key key_of(std::int32_t id, std::int64_t row) {
  return static_cast<Key>(id) << 32 | static_cast<Key>(row);
}
std::int64_t id_of(Key key) {
  return static_cast<std::int64_t>(key >> 32);
}
std::int64_t row_of(Key key) {
  return static_cast<std::int64_t>(key & 0xffffffffu);
}

// All rows of the ids whose first row stands in places [begin, end).
void add_rows(const EmbeddingBackwardArgs& args, std::span<const Key> keys, std::size_t begin,
              std::size_t end) {
  const std::int64_t d = args.grad_y.shape[1];
  std::size_t at = begin;
  while (at > 0 && at < keys.size() && id_of(keys[at]) == id_of(keys[at - 1])) ++at;
  while (at < end) {
    const std::int64_t id = id_of(keys[at]);
    float* to = args.grad_table.data + id * args.grad_table.stride[0];
    for (; at < keys.size() && id_of(keys[at]) == id; ++at) {
      const float* from = args.grad_y.data + row_of(keys[at]) * args.grad_y.stride[0];
      for (std::int64_t i = 0; i < d; ++i) to[i] += from[i];
    }
  }
}

}  // namespace

std::size_t embedding_backward_workspace_bytes_cpu(const EmbeddingBackwardArgs& args) {
  return args.ids.size() * sizeof(Key) + Arena::kAlignBytes;
}

void embedding_backward_cpu(const EmbeddingBackwardArgs& args, Context& ctx) {
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  ArenaScope scope(ctx.workspace());
  const std::span<Key> keys(scope.allocate<Key>(rows), args.ids.size());
  for (std::int64_t row = 0; row < rows; ++row) keys[row] = key_of(args.ids[row], row);
  std::sort(keys.begin(), keys.end());
  ctx.pool().run((rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kRowsPerTask;
    add_rows(args, keys, static_cast<std::size_t>(begin),
             static_cast<std::size_t>(std::min(rows, begin + kRowsPerTask)));
  });
}

}  // namespace mamba3
