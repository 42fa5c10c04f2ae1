#include "ops/mamba3_scan/mamba3_scan.h"

#include <hwy/targets.h>

#include <algorithm>

#include "core/arena.h"
#include "core/check.h"
#include "core/gpu.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/mamba3_scan/scan_kernels.h"

namespace mamba3 {
namespace {

// What all heads share of a segment's tokens stays in the second-level cache.
constexpr std::int64_t kSegmentBytes = std::int64_t{512} << 10;
constexpr std::int64_t kMostSegmentTokens = 512;
constexpr std::int64_t kMostChunkStateBytes = std::int64_t{64} << 20;
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kTokensPerTask = 16;
// Taking chunks all at once computes their keys twice: about this much more work, in percent.
constexpr std::int64_t kParallelCostPercent = 125;
// Of n and p, for tensor cores: pieces of 16 bytes.
constexpr std::int64_t kMmaMultiple = 8;
// Sums of fewer products show the rounding of each. The authors' kernels for SISO multiply a
// token's own Q and K apart and exactly, those for MIMO do not: no error shall be larger than
// theirs.
constexpr std::int64_t kMmaFewestStateSiso = 64;
constexpr std::int64_t kMmaFewestStateMimo = 32;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// The call is worked off in segments, so that memory does not grow with its length. A segment is
// the whole or the rest of some sequences, and a number of chunks of one more.
struct Segment {
  std::int64_t begin = 0;  // tokens
  std::int64_t end = 0;
  std::int64_t parts = 0;
  std::int64_t chunks = 0;
  std::int64_t longest = 0;  // chunks of the longest part
};

// Walks over the segments of a call.
class Segments {
 public:
  Segments(const Mamba3ScanArgs& args, const ChunkSizes& sizes, std::int64_t most_tokens)
      : args_(args), chunk_tokens_(sizes.tokens), most_tokens_(most_tokens) {}

  // Fills the next segment and, unless null, its parts; false when there is none.
  bool next(Segment& segment, ScanPart* parts) {
    const auto sequences = static_cast<std::int64_t>(args_.slots.size());
    segment = Segment{};
    segment.begin = segment.end = token_;
    for (; sequence_ < sequences; ++sequence_) {
      const std::int64_t left = args_.cu_seqlens[sequence_ + 1] - token_;
      const std::int64_t room = most_tokens_ - (segment.end - segment.begin);
      const std::int64_t taken = left <= room ? left : room / chunk_tokens_ * chunk_tokens_;
      if (taken > 0) add_part(segment, parts, taken);
      if (taken < left) break;
    }
    return segment.parts > 0;
  }

 private:
  void add_part(Segment& segment, ScanPart* parts, std::int64_t tokens) {
    if (parts != nullptr) parts[segment.parts] = {args_.slots[sequence_], token_, token_ + tokens};
    const std::int64_t chunks = divide_up(tokens, chunk_tokens_);
    segment.parts += 1;
    segment.chunks += chunks;
    segment.longest = std::max(segment.longest, chunks);
    token_ += tokens;
    segment.end = token_;
  }

  const Mamba3ScanArgs& args_;
  std::int64_t chunk_tokens_;
  std::int64_t most_tokens_;
  std::int64_t sequence_ = 0;
  std::int64_t token_ = 0;
};

std::int64_t shared_bytes_per_token(const Mamba3Dims& dims) {
  return dims.heads * static_cast<std::int64_t>(sizeof(TokenScalars)) +
         dims.angles * static_cast<std::int64_t>(sizeof(double)) +
         2 * dims.rank * dims.groups * dims.state * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t segment_tokens(const Mamba3Dims& dims, const ChunkSizes& sizes, std::int64_t threads) {
  const std::int64_t chunk_bytes = sizes.tokens * shared_bytes_per_token(dims);
  std::int64_t chunks = std::min(kSegmentBytes / chunk_bytes, kMostSegmentTokens / sizes.tokens);
  if (threads > 1) {
    // Enough chunks for all threads, should their states be kept at once.
    const std::int64_t state_bytes =
        dims.heads * sizes.state_elements * static_cast<std::int64_t>(sizeof(float));
    chunks = std::max(chunks, divide_up(kTasksPerThread * threads, dims.heads));
    chunks = std::min(chunks, kMostChunkStateBytes / state_bytes);
  }
  return std::max<std::int64_t>(chunks, 1) * sizes.tokens;
}

// One long part and too few heads to keep all threads busy: take its chunks all at once.
bool parallel_over_time(const Segment& segment, std::int64_t heads, std::int64_t threads) {
  if (threads == 1 || segment.parts != 1) return false;
  const std::int64_t rounds = divide_up(heads, threads);
  return 100 * rounds * threads > kParallelCostPercent * heads && segment.chunks > 1;
}

// Only where an instruction takes pairs of bf16; anywhere else fp32 is as fast.
bool use_bf16_products(const Mamba3ScanArgs& args) {
#if HWY_ARCH_X86
  return args.bf16_products && (hwy::SupportedTargets() & HWY_AVX3) != 0 &&
         __builtin_cpu_supports("avx512bf16") != 0;
#else
  (void)args;
  return false;
#endif
}

// All memory of one call.
struct Workspace {
  Workspace(const Mamba3ScanArgs& args, const ChunkSizes& sizes, std::int64_t threads,
            std::int64_t most_tokens, bool bf16_products, Carver& carver)
      : tokens(args.dims, longest_segment(args, most_tokens), carver),
        parts(carver.take<ScanPart>(
            std::min<std::int64_t>(most_tokens, static_cast<std::int64_t>(args.slots.size())))),
        states(args.dims, sizes, parallel_chunks(args, sizes, threads, most_tokens), carver) {
    Carver measure(nullptr);
    const ChunkScratch one(args.dims, sizes, bf16_products, measure);
    scratch_bytes = measure.bytes();
    scratch = carver.take<std::byte>(threads * static_cast<std::int64_t>(scratch_bytes));
  }

  TokenBuffers tokens;
  ScanPart* parts;
  ChunkStates states;
  std::byte* scratch = nullptr;
  std::size_t scratch_bytes = 0;

 private:
  static std::int64_t longest_segment(const Mamba3ScanArgs& args, std::int64_t most_tokens) {
    return std::min(most_tokens, args.cu_seqlens.back());
  }
  static std::int64_t parallel_chunks(const Mamba3ScanArgs& args, const ChunkSizes& sizes,
                                      std::int64_t threads, std::int64_t most_tokens) {
    std::int64_t chunks = 0;
    Segment segment;
    for (Segments walk(args, sizes, most_tokens); walk.next(segment, nullptr);) {
      if (parallel_over_time(segment, args.dims.heads, threads)) {
        chunks = std::max(chunks, segment.chunks);
      }
    }
    return chunks;
  }
};

void chain_turns(const ScanJob& job, const ScanPart& part, std::int64_t chunks,
                 const ChunkStates& states) {
  const std::int64_t count = job.args.dims.heads * job.args.dims.angles;
  std::uint32_t* slot = job.args.states.turns + part.slot * job.args.states.turns_stride;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    std::uint32_t* moved = states.turns + chunk * count;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t before = slot[i];
      slot[i] += moved[i];
      moved[i] = before;
    }
  }
}

void run_parallel_over_time(const ScanJob& job, const ScanPart& part, std::int64_t chunks,
                            const ChunkStates& states, ThreadPool& pool) {
  const std::int64_t heads = job.args.dims.heads;
  const std::int64_t n = job.sizes.n;
  const std::int64_t tasks = chunks * heads;
  pool.run(tasks, [&](std::int64_t task, int) {
    sum_chunk_turns(job, part, task / heads, task % heads, states);
  });
  chain_turns(job, part, chunks, states);
  pool.run(tasks, [&](std::int64_t task, int worker) {
    chunk_local_state(job, part, task / heads, task % heads, worker, states);
  });
  // Slices of the state begin at multiples of a register tile.
  const std::int64_t tiles = divide_up(n, kRowPadding);
  const std::int64_t slices =
      std::min(tiles, divide_up(static_cast<std::int64_t>(pool.threads()), heads));
  pool.run(heads * slices, [&](std::int64_t task, int worker) {
    const std::int64_t slice = task % slices;
    chain_states(job, part, task / slices, tiles * slice / slices * kRowPadding,
                 std::min(n, tiles * (slice + 1) / slices * kRowPadding), worker, states);
  });
  pool.run(tasks, [&](std::int64_t task, int worker) {
    chunk_outputs_from(job, part, task / heads, task % heads, worker, states);
  });
}

void check_args(const Mamba3ScanArgs& args, Context& ctx) {
  check_dims(args.dims);
  check_params(args.dims, args.params);
  const auto sequences = static_cast<std::int64_t>(args.slots.size());
  const auto bounds = static_cast<std::int64_t>(args.cu_seqlens.size());
  check_input(bounds == sequences + 1, "cu_seqlens has ", bounds, " entries with ", sequences,
              " slots; expected one more than slots");
  const std::int64_t tokens = args.y.shape[0];
  check_columns(args.dims, args.columns, tokens);
  check_input(args.columns.z_bf16 == nullptr ||
                  (args.bf16_products && mamba3_scan_takes_bf16(args.dims, ctx)),
              "mamba3_scan: z and x are bf16; expected fp32 for this layer on this device");
  check_states(args.dims, args.states, args.slots, ctx);
  check_scan_output(args.dims, args.y, tokens);
  if (ctx.gpu()) return;  // cu_seqlens lie in its memory; the caller has checked them
  check_input(args.cu_seqlens[0] == 0, "cu_seqlens starts with ", args.cu_seqlens[0],
              "; expected 0");
  for (std::int64_t i = 0; i < sequences; ++i) {
    check_input(args.cu_seqlens[i] <= args.cu_seqlens[i + 1], "cu_seqlens[", i, "] is ",
                args.cu_seqlens[i], " and the next is ", args.cu_seqlens[i + 1],
                "; expected numbers that do not decrease");
  }
  check_input(args.cu_seqlens[sequences] == tokens, "cu_seqlens ends with ",
              args.cu_seqlens[sequences], "; expected ", tokens, ", the rows of y");
}

}  // namespace

TokenBuffers::TokenBuffers(const Mamba3Dims& dims, std::int64_t capacity_in, Carver& carver)
    : capacity(capacity_in),
      scalars(carver.take<TokenScalars>(dims.heads * capacity)),
      half_tanh(carver.take<double>(capacity * dims.angles)),
      finite_angles(carver.take<std::uint8_t>(capacity)),
      in_b(carver.take<float>(capacity * dims.rank * dims.groups * dims.state)),
      out_c(carver.take<float>(capacity * dims.rank * dims.groups * dims.state)) {}

ChunkStates::ChunkStates(const Mamba3Dims& dims, const ChunkSizes& sizes, std::int64_t chunks,
                         Carver& carver)
    : turns(carver.take<std::uint32_t>(chunks * dims.heads * dims.angles)),
      state(carver.take<float>(chunks * dims.heads * sizes.state_elements)),
      k_last(carver.take<float>(chunks * dims.heads * dims.rank * dims.state)),
      decay(carver.take<float>(chunks * dims.heads)) {}

std::int64_t mamba3_scan_chunk_tokens(const Mamba3Dims& dims) {
  return ChunkSizes(dims).tokens;
}

std::int64_t mamba3_scan_grid_tokens(const Mamba3Dims& dims, const Context& ctx) {
  return ctx.gpu() ? kScanGridTokensCuda : mamba3_scan_chunk_tokens(dims);
}

bool mamba3_scan_takes_bf16(const Mamba3Dims& dims, const Context& ctx) {
  if (!ctx.gpu()) return false;
  const KernelPath path = mamba3_scan_path(dims, ctx.gpu()->info().compute_capability, true);
  return path.tuned || path.mma;
}

KernelPath mamba3_scan_path(const Mamba3Dims& dims, int compute_capability, bool bf16_products) {
  KernelPath path = tuned_for(dims, compute_capability);
  if (path.tuned && dims.mimo && dims.rank == 1) {
    path = {false, "MIMO of r = 1; the tuned kernels are for SISO and for 2 and 4"};
  }
  if (path.none) return path;
  if (!bf16_products) {
    if (path.tuned) path = {false, "products in fp32; the tuned kernels are for bf16"};
    return path;
  }
  const std::int64_t fewest = dims.mimo ? kMmaFewestStateMimo : kMmaFewestStateSiso;
  path.mma = !path.tuned && dims.state >= fewest && dims.state % kMmaMultiple == 0 &&
             dims.head_dim % kMmaMultiple == 0;
  return path;
}

std::size_t mamba3_scan_workspace_bytes(const Mamba3ScanArgs& args, const Context& ctx) {
  const ChunkSizes sizes(args.dims);
  const std::int64_t threads = ctx.threads();
  Carver measure(nullptr);
  const Workspace workspace(args, sizes, threads, segment_tokens(args.dims, sizes, threads),
                            use_bf16_products(args), measure);
  return std::max(measure.bytes(), check_slots_workspace_bytes(args.slots));
}

void mamba3_scan(const Mamba3ScanArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "mamba3_scan");
  check_args(args, ctx);
  if (args.y.shape[0] == 0) return;
  if (ctx.gpu()) return mamba3_scan_cuda(args, ctx);
  const ChunkSizes sizes(args.dims);
  const std::int64_t threads = ctx.threads();
  const std::int64_t heads = args.dims.heads;
  const std::int64_t most_tokens = segment_tokens(args.dims, sizes, threads);
  Carver measure(nullptr);
  const bool bf16_products = use_bf16_products(args);
  const Workspace measured(args, sizes, threads, most_tokens, bf16_products, measure);
  ArenaScope scope(ctx.workspace());
  Carver carver(scope.allocate<std::byte>(static_cast<std::int64_t>(measure.bytes())));
  Workspace workspace(args, sizes, threads, most_tokens, bf16_products, carver);

  ScanJob job{
      args, sizes, bf16_products, workspace.tokens, workspace.scratch, workspace.scratch_bytes};
  Segment segment;
  for (Segments walk(args, sizes, most_tokens); walk.next(segment, workspace.parts);) {
    job.tokens.begin = segment.begin;
    const std::int64_t tokens = segment.end - segment.begin;
    ctx.pool().run(divide_up(tokens, kTokensPerTask), [&](std::int64_t task, int) {
      const std::int64_t begin = segment.begin + task * kTokensPerTask;
      prepare_tokens(job, begin, std::min(segment.end, begin + kTokensPerTask));
    });
    if (parallel_over_time(segment, heads, threads)) {
      run_parallel_over_time(job, workspace.parts[0], segment.chunks, workspace.states, ctx.pool());
      continue;
    }
    ctx.pool().run(segment.parts * heads, [&](std::int64_t task, int worker) {
      scan_part(job, workspace.parts[task / heads], task % heads, worker);
    });
  }
}

}  // namespace mamba3
