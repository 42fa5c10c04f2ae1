#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

#include <algorithm>
#include <limits>

#include "core/arena.h"
#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/mamba3_scan_backward/backward_kernels.h"

namespace mamba3 {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Sequences that are worked off together, and what that takes.
struct Group {
  std::int64_t begin = 0;  // sequences
  std::int64_t end = 0;
  std::int64_t tokens = 0;  // most of a round
  std::int64_t chunks = 0;  // likewise
  std::int64_t rounds = 0;
  std::int64_t stored = 0;  // states between slabs
};

class Groups {
 public:
  Groups(const Mamba3ScanBackwardArgs& args, const BackwardSizes& sizes)
      : args_(args), sizes_(sizes) {}

  // Fills the next group; false when there is none.
  bool next(Group& group) {
    const auto sequences = static_cast<std::int64_t>(args_.slots.size());
    const std::int64_t begin = group.end;
    group = Group{};
    group.begin = group.end = begin;
    for (; group.end < sequences; ++group.end) {
      const std::int64_t length = args_.cu_seqlens[group.end + 1] - args_.cu_seqlens[group.end];
      const std::int64_t widest = std::min(length, sizes_.slab_tokens);
      const bool full =
          group.tokens + widest > sizes_.round_tokens || group.end - begin == sizes_.round_parts;
      if (full && group.end > begin) break;
      const std::int64_t slabs = divide_up(length, sizes_.slab_tokens);
      group.tokens += widest;
      group.chunks += divide_up(widest, sizes_.chunk.tokens);
      group.rounds = std::max(group.rounds, slabs);
      group.stored += std::max<std::int64_t>(slabs - 1, 0);
    }
    return group.end > begin;
  }

 private:
  const Mamba3ScanBackwardArgs& args_;
  const BackwardSizes& sizes_;
};

// The largest of all groups in each respect.
Group largest_group(const Mamba3ScanBackwardArgs& args, const BackwardSizes& sizes) {
  Group most;
  Group group;
  for (Groups walk(args, sizes); walk.next(group);) {
    most.end = std::max(most.end, group.end - group.begin);
    most.tokens = std::max(most.tokens, group.tokens);
    most.chunks = std::max(most.chunks, group.chunks);
    most.stored = std::max(most.stored, group.stored);
  }
  return most;
}

// All memory of one call.
struct Workspace {
  Workspace(const Mamba3ScanBackwardArgs& args, const BackwardSizes& sizes, const Group& most,
            std::int64_t threads, Carver& carver)
      : slab(args.dims, sizes, most.tokens, most.chunks, carver),
        stored(args.dims, most.stored, carver),
        parts(carver.take<BackwardPart>(most.end)),
        head_sums(carver.take<float>(most.end * args.dims.heads * HeadSums::elements(args.dims))),
        norm_sums(carver.take<float>(most.end * 2 * args.dims.state)) {
    Carver measure(nullptr);
    const BackwardScratch one(args.dims, sizes, measure);
    scratch_bytes = measure.bytes();
    scratch = carver.take<std::byte>(threads * static_cast<std::int64_t>(scratch_bytes));
  }

  SlabBuffers slab;
  StoredStates stored;
  BackwardPart* parts;
  float* head_sums;  // [sequences, h, HeadSums]
  float* norm_sums;  // [sequences, 2, n]
  std::byte* scratch = nullptr;
  std::size_t scratch_bytes = 0;
};

class Backward {
 public:
  Backward(const Mamba3ScanBackwardArgs& args, const BackwardSizes& sizes, Workspace& workspace,
           ThreadPool& pool)
      : args_(args),
        workspace_(workspace),
        pool_(pool),
        job_{args,
             sizes,
             workspace.slab,
             workspace.stored,
             workspace.head_sums,
             workspace.scratch,
             workspace.scratch_bytes} {
    forward_.dims = args.dims;
    forward_.params = args.params;
    forward_.columns = args.columns;
  }

  void run(const Group& group) {
    for (std::int64_t slab = 0; slab + 1 < group.rounds; ++slab) advance(group, slab);
    for (std::int64_t slab = group.rounds - 1; slab >= 0; --slab) walk_back(group, slab);
    if (group.rounds > 0) add_sums(group);
  }

 private:
  // The slab-th slab of each sequence that has it, `followed`: that has one behind it.
  std::span<const BackwardPart> cut(const Group& group, std::int64_t slab, bool followed) {
    const std::int64_t most = job_.sizes.slab_tokens;
    BackwardPart next;
    std::size_t count = 0;
    std::int64_t stored = 0;  // states of the sequences before
    for (std::int64_t i = group.begin; i < group.end; ++i) {
      const std::int64_t begin = args_.cu_seqlens[i];
      const std::int64_t end = args_.cu_seqlens[i + 1];
      const std::int64_t slabs = divide_up(end - begin, most);
      if (slab + (followed ? 1 : 0) < slabs) {
        next.slot = args_.slots[i];
        next.begin = begin + slab * most;
        next.end = std::min(end, next.begin + most);
        next.sequence = i - group.begin;
        next.start = slab == 0 ? -1 : stored + slab - 1;
        next.after = stored + slab;
        next.fresh = slab + 1 == slabs;
        workspace_.parts[count++] = next;
        next.offset += next.end - next.begin;
        next.chunk += divide_up(next.end - next.begin, job_.sizes.chunk.tokens);
      }
      stored += std::max<std::int64_t>(slabs - 1, 0);
    }
    return {workspace_.parts, count};
  }

  // Calls body(part, chunk of the part) for each chunk of a round, on the pool.
  template <class Body>
  void for_chunks(std::span<const BackwardPart> parts, const Body& body) {
    const BackwardPart& last = parts.back();
    const std::int64_t chunks =
        last.chunk + divide_up(last.end - last.begin, job_.sizes.chunk.tokens);
    pool_.run(chunks, [&](std::int64_t task, int) {
      const auto behind = std::upper_bound(
          parts.begin(), parts.end(), task,
          [](std::int64_t at, const BackwardPart& part) { return at < part.chunk; });
      const BackwardPart& part = *(behind - 1);
      body(part, task - part.chunk);
    });
  }

  void prepare(std::span<const BackwardPart> parts) {
    const std::int64_t most = job_.sizes.chunk.tokens;
    for_chunks(parts, [&](const BackwardPart& part, std::int64_t chunk) {
      ScanJob job{forward_, job_.sizes.chunk, false, job_.slab.tokens, nullptr, 0};
      job.tokens.begin = part.begin - part.offset;
      const std::int64_t begin = part.begin + chunk * most;
      prepare_tokens(job, begin, std::min(part.end, begin + most));
    });
  }

  void advance(const Group& group, std::int64_t slab) {
    const std::span<const BackwardPart> parts = cut(group, slab, true);
    prepare(parts);
    const std::int64_t heads = args_.dims.heads;
    pool_.run(std::ssize(parts) * heads, [&](std::int64_t task, int worker) {
      advance_part(job_, parts[task / heads], task % heads, worker);
    });
  }

  void walk_back(const Group& group, std::int64_t slab) {
    const std::span<const BackwardPart> parts = cut(group, slab, false);
    prepare(parts);
    const std::int64_t blocks = job_.sizes.blocks;
    pool_.run(std::ssize(parts) * blocks, [&](std::int64_t task, int worker) {
      walk_part(job_, parts[task / blocks], task % blocks, worker);
    });
    for_chunks(parts, [&](const BackwardPart& part, std::int64_t chunk) {
      reduce_chunk(job_, part, chunk);
    });
    pool_.run(std::ssize(parts), [&](std::int64_t task, int) { sum_norms(parts[task]); });
  }

  void sum_norms(const BackwardPart& part) {
    const std::int64_t width = 2 * args_.dims.state;
    float* sum = workspace_.norm_sums + part.sequence * width;
    if (part.fresh) std::fill_n(sum, width, 0.0f);
    const std::int64_t chunks = divide_up(part.end - part.begin, job_.sizes.chunk.tokens);
    for (std::int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      add(job_.slab.norm_sums + (part.chunk + chunk) * width, width, sum);
    }
  }

  // The sequences' sums, one after the other.
  void add_sums(const Group& group) {
    const Mamba3Dims& dims = args_.dims;
    pool_.run(dims.heads + 1, [&](std::int64_t task, int) {
      for (std::int64_t i = 0; i < group.end - group.begin; ++i) {
        if (args_.cu_seqlens[group.begin + i] == args_.cu_seqlens[group.begin + i + 1]) continue;
        if (task < dims.heads) {
          add_head(task, workspace_.head_sums + (i * dims.heads + task) * HeadSums::elements(dims));
        } else {
          const float* sums = workspace_.norm_sums + i * 2 * dims.state;
          add(sums, dims.state, args_.grad_params.in_b_norm);
          add(sums + dims.state, dims.state, args_.grad_params.out_c_norm);
        }
      }
    });
  }

  void add_head(std::int64_t head, float* memory) {
    const Mamba3Dims& dims = args_.dims;
    const Mamba3ParamGradients& to = args_.grad_params;
    const HeadSums sums(dims, memory);
    const std::int64_t rn = dims.rank * dims.state;
    const std::int64_t rp = dims.rank * dims.head_dim;
    add(sums.dt_bias, 1, to.dt_bias + head);
    add(sums.skip, 1, to.skip + head);
    add(sums.in_b_bias, rn, to.in_b_bias + head * rn);
    add(sums.out_c_bias, rn, to.out_c_bias + head * rn);
    if (dims.mimo) {
      add(sums.mimo_x, rp, to.mimo_x + head * rp);
      add(sums.mimo_z, rp, to.mimo_z + head * rp);
      add(sums.mimo_o, rp, to.mimo_o + head * rp);
    }
    if (dims.out_norm) add(sums.out_norm, dims.head_dim, to.out_norm + head * dims.head_dim);
  }

  static void add(const float* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
  }

  const Mamba3ScanBackwardArgs& args_;
  Workspace& workspace_;
  ThreadPool& pool_;
  BackwardJob job_;
  Mamba3ScanArgs forward_;
};

void check_gradient(const char* name, const void* data, bool needed = true) {
  check_input(!needed || data != nullptr, "the gradient of the layer's ", name,
              " has no memory; expected a tensor; pass it");
}

void check_stride(const char* name, std::int64_t stride, std::int64_t least, std::int64_t rows) {
  check_input(
      rows <= 1 || (stride >= least && stride <= std::numeric_limits<std::int64_t>::max() / rows),
      name, " is ", stride, "; expected at least ", least, " and no overflow over ", rows, " rows");
}

void check_column_gradients(const Mamba3Dims& dims, const Mamba3ColumnGradients& grads,
                            std::int64_t rows) {
  if (rows == 0) return;
  const bool bf16 = grads.rows_bf16 != nullptr;
  check_gradient("z column", grads.z, !bf16);
  check_gradient("x column", grads.x, !bf16);
  check_gradient("B column", grads.in_b, !bf16);
  check_gradient("C column", grads.out_c, !bf16);
  check_gradient("dt column", grads.dt_raw, !bf16);
  check_gradient("A column", grads.decay_raw, !bf16);
  check_gradient("trap column", grads.trap_raw, !bf16);
  check_gradient("angle column", grads.angle_raw, !bf16 && dims.angle_columns() > 0);
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t shared = dims.rank * dims.groups * dims.state;
  const std::int64_t least =
      bf16 ? 2 * inner + 2 * shared + 3 * dims.heads + dims.angle_columns() + grads.zero_columns
           : std::max(inner, shared);
  check_input(grads.zero_columns >= 0 && (bf16 || grads.zero_columns == 0),
              "mamba3_scan_backward: ", grads.zero_columns,
              " columns of zeros behind the gradients; expected none, or some behind rows in bf16");
  check_stride("the row stride of the columns' gradients", grads.row_stride, least, rows);
}

void check_param_gradients(const Mamba3Dims& dims, const Mamba3ParamGradients& grads) {
  check_gradient("dt_bias", grads.dt_bias);
  check_gradient("D", grads.skip);
  check_gradient("B_bias", grads.in_b_bias);
  check_gradient("C_bias", grads.out_c_bias);
  check_gradient("B_norm.weight", grads.in_b_norm);
  check_gradient("C_norm.weight", grads.out_c_norm);
  check_gradient("mimo_x", grads.mimo_x, dims.mimo);
  check_gradient("mimo_z", grads.mimo_z, dims.mimo);
  check_gradient("mimo_o", grads.mimo_o, dims.mimo);
  check_gradient("norm.weight", grads.out_norm, dims.out_norm);
}

void check_state_gradients(const Mamba3Dims& dims, const Mamba3StateGradients& grads,
                           std::span<const std::int32_t> slots, const Context& ctx) {
  if (slots.empty()) return;
  check_gradient("angle state", grads.angle, dims.angles > 0);
  check_gradient("ssm state", grads.ssm);
  check_gradient("k state", grads.k);
  check_gradient("v state", grads.v);
  const std::int64_t inner = dims.heads * dims.head_dim;
  check_stride("angle_stride", grads.angle_stride, dims.heads * dims.angles, grads.slots);
  check_stride("ssm_stride", grads.ssm_stride, inner * dims.state, grads.slots);
  check_stride("k_stride", grads.k_stride, dims.rank * dims.heads * dims.state, grads.slots);
  check_stride("v_stride", grads.v_stride, inner, grads.slots);
  if (ctx.gpu()) return;  // the slots lie in its memory; the caller has checked them
  const std::int32_t highest = *std::max_element(slots.begin(), slots.end());
  check_input(highest < grads.slots, "slots go up to ", highest, " and gradients have ",
              grads.slots, " slots; expected one for each");
}

void check_bounds(const Mamba3ScanBackwardArgs& args, std::int64_t tokens, const Context& ctx) {
  const auto sequences = static_cast<std::int64_t>(args.slots.size());
  const auto bounds = static_cast<std::int64_t>(args.cu_seqlens.size());
  check_input(bounds == sequences + 1, "cu_seqlens has ", bounds, " entries with ", sequences,
              " slots; expected one more than slots");
  if (ctx.gpu()) return;  // likewise
  check_input(args.cu_seqlens[0] == 0, "cu_seqlens starts with ", args.cu_seqlens[0],
              "; expected 0");
  for (std::int64_t i = 0; i < sequences; ++i) {
    check_input(args.cu_seqlens[i] <= args.cu_seqlens[i + 1], "cu_seqlens[", i, "] is ",
                args.cu_seqlens[i], " and the next is ", args.cu_seqlens[i + 1],
                "; expected numbers that do not decrease");
  }
  check_input(args.cu_seqlens[sequences] == tokens, "cu_seqlens ends with ",
              args.cu_seqlens[sequences], "; expected ", tokens, ", the rows of grad_y");
}

// What only a GPU takes, and only where products may be rounded.
void check_types(const Mamba3ScanBackwardArgs& args, const Context& ctx) {
  const bool takes_bf16 = ctx.gpu() && args.bf16_products;
  check_input(takes_bf16 || args.columns.z_bf16 == nullptr,
              "mamba3_scan_backward: z and x are bf16; expected fp32");
  check_input(takes_bf16 || args.grad_columns.rows_bf16 == nullptr,
              "mamba3_scan_backward: the gradients of columns are bf16; expected fp32");
  check_input(takes_bf16 || !args.grad_y.is_bf16(),
              "mamba3_scan_backward: the gradient of y is bf16; expected fp32");
}

void check_args(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  check_dims(args.dims);
  check_params(args.dims, args.params);
  const std::int64_t tokens = args.grad_y.shape[0];
  check_types(args, ctx);
  check_bounds(args, tokens, ctx);
  check_columns(args.dims, args.columns, tokens);
  check_states(args.dims, args.states, args.slots, ctx);
  check_scan_output(args.dims, args.grad_y, tokens);
  check_column_gradients(args.dims, args.grad_columns, tokens);
  check_param_gradients(args.dims, args.grad_params);
  check_state_gradients(args.dims, args.grad_states, args.slots, ctx);
}

}  // namespace

Mamba3ColumnGradients split_column_gradients(float* rows, std::int64_t row_stride,
                                             const Mamba3Dims& dims) {
  const Mamba3Columns columns = split_columns(rows, row_stride, dims);
  Mamba3ColumnGradients out;
  out.row_stride = row_stride;
  if (rows == nullptr) return out;
  const auto at = [rows](const float* column) { return rows + (column - rows); };
  out.z = at(columns.z);
  out.x = at(columns.x);
  out.in_b = at(columns.in_b);
  out.out_c = at(columns.out_c);
  out.dt_raw = at(columns.dt_raw);
  out.decay_raw = at(columns.decay_raw);
  out.trap_raw = at(columns.trap_raw);
  if (dims.angle_columns() > 0) out.angle_raw = at(columns.angle_raw);
  return out;
}

std::int64_t mamba3_scan_backward_slab_tokens(const Mamba3Dims& dims) {
  return BackwardSizes(dims).slab_tokens;
}

std::size_t mamba3_scan_backward_workspace_bytes(const Mamba3ScanBackwardArgs& args,
                                                 const Context& ctx) {
  if (ctx.gpu()) return mamba3_scan_backward_workspace_bytes_cuda(args, ctx);
  const BackwardSizes sizes(args.dims);
  Carver measure(nullptr);
  const Workspace workspace(args, sizes, largest_group(args, sizes), ctx.threads(), measure);
  return std::max(measure.bytes(), check_slots_workspace_bytes(args.slots));
}

void mamba3_scan_backward(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "mamba3_scan_backward");
  check_args(args, ctx);
  if (ctx.gpu()) return mamba3_scan_backward_cuda(args, ctx);
  if (args.grad_y.shape[0] == 0) return;
  const BackwardSizes sizes(args.dims);
  const Group most = largest_group(args, sizes);
  Carver measure(nullptr);
  const Workspace measured(args, sizes, most, ctx.threads(), measure);
  ArenaScope scope(ctx.workspace());
  Carver carver(scope.allocate<std::byte>(static_cast<std::int64_t>(measure.bytes())));
  Workspace workspace(args, sizes, most, ctx.threads(), carver);
  Backward backward(args, sizes, workspace, ctx.pool());
  Group group;
  for (Groups walk(args, sizes); walk.next(group);) backward.run(group);
}

}  // namespace mamba3
