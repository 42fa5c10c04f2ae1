#include "ops/embedding/embedding.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/embedding/embedding_cpu.h"

namespace mamba3 {
namespace {

void check(const EmbeddingArgs& args) {
  const TensorRef& table = args.table;
  check_input(table.shape.size() == 2, "embedding: the table has shape ", shape_string(table.shape),
              "; expected two dimensions, [v, d]");
  check_input(table.dtype == DType::kBf16 || table.dtype == DType::kF32, "embedding: the table is ",
              dtype_name(table.dtype), "; expected BF16 or F32; convert the checkpoint");
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  check_input(args.y.shape[0] == rows && args.y.shape[1] == table.shape[1], "embedding: y is ",
              shape_string(args.y.shape), " for ", rows, " ids and a table of ",
              shape_string(table.shape), "; expected [ids, d]");
  check_input(args.y.stride[1] == 1 || args.y.shape[1] <= 1, "embedding: the inner stride of y is ",
              args.y.stride[1], "; expected 1");
}

void check_ids(const EmbeddingArgs& args) {
  const TensorRef& table = args.table;
  for (std::size_t i = 0; i < args.ids.size(); ++i) {
    const std::int32_t id = args.ids[i];
    check_input(id >= 0 && id < table.shape[0], "token ", i, " has the id ", id, "; expected 0 to ",
                table.shape[0] - 1, "; use the tokenizer that belongs to the model");
  }
}

}  // namespace

void embedding(const EmbeddingArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "embedding");
  check(args);
  if (args.y.elements() == 0) return;
  if (ctx.gpu()) return embedding_cuda(args, ctx);
  check_ids(args);
  embedding_cpu(args, ctx);
}

}  // namespace mamba3
