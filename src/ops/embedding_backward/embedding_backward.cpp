#include "ops/embedding_backward/embedding_backward.h"

#include <iterator>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/embedding_backward/embedding_backward_cpu.h"

namespace mamba3 {
namespace {

void check_shapes(const EmbeddingBackwardArgs& args) {
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  check_input(args.grad_y.shape[0] == rows && args.grad_y.shape[1] == args.grad_table.shape[1],
              "embedding_backward: grad_y is ", shape_string(args.grad_y.shape), " for ", rows,
              " ids and a table of ", shape_string(args.grad_table.shape), "; expected [ids, d]");
  check_input(rows < std::int64_t{1} << 32, "embedding_backward: ", rows,
              " ids; expected fewer than 2^32");
  for (const std::int64_t stride : {args.grad_y.stride[1], args.grad_table.stride[1]}) {
    check_input(stride == 1 || args.grad_y.shape[1] <= 1, "embedding_backward: an inner stride is ",
                stride, "; expected 1");
  }
}

void check_ids(const EmbeddingBackwardArgs& args) {
  for (std::int64_t i = 0; i < std::ssize(args.ids); ++i) {
    const std::int32_t id = args.ids[i];
    check_input(id >= 0 && id < args.grad_table.shape[0], "embedding_backward: token ", i,
                " has the id ", id, "; expected 0 to ", args.grad_table.shape[0] - 1);
  }
}

}  // namespace

std::size_t embedding_backward_workspace_bytes(const EmbeddingBackwardArgs& args,
                                               const Context& ctx) {
  return ctx.gpu() ? embedding_backward_workspace_bytes_cuda(args)
                   : embedding_backward_workspace_bytes_cpu(args);
}

void embedding_backward(const EmbeddingBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "embedding_backward");
  check_shapes(args);
  if (!ctx.gpu()) check_ids(args);
  if (args.grad_y.elements() == 0) return;
  if (ctx.gpu()) return embedding_backward_cuda(args, ctx);
  embedding_backward_cpu(args, ctx);
}

}  // namespace mamba3
