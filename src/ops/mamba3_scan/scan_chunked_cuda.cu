// One block walks one head of one sequence, chunk by chunk. docs/SEMANTICS.md derives the merged
// form: in a chunk
//   O = (Q K^T with decays and weights) X + decayed Q h,    h' = decay h + (faded X)^T K
// are four matrix products in bf16 with fp32 sums; weights are applied to the scores in fp32. One
// warpgroup makes O and y; the other has h in its accumulators, and makes the gates.
#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_cuda.h"
#include "ops/mamba3_scan/scan_chunked_outputs_cuda.cuh"

// Code for other cards than Hopper has none of what the kernel calls.
#pragma nv_diag_suppress 177

namespace mamba3 {
namespace {

// Of a thread in each warpgroup; together those of 2 x 128 threads with 128 each.
constexpr int kOutputRegisters = 104;
constexpr int kStateRegisters = 152;

// O = decayed Q h + weighted scores X.
template <class S>
__device__ __forceinline__ void read_out(const Fragment& own, const ChunkMemory<S>& m,
                                         float (&o)[kAccumulators]) {
  float scores[kAccumulators];
  wgmma_fence();
  multiply_rows<S>(m.q, m.k, scores);
  wgmma_commit();
  multiply_rows<S>(m.q, m.h, o);
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_hold(scores);
  std::uint32_t weighted[4][4];
  weigh_scores<S>(m, own, scores, weighted);
  wgmma_wait<0>();
  wgmma_hold(o);
  tell(kStateRead);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float decay = m.start_decay[Weights<S>::row_token(own, half)];
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
      o[4 * j + 2 * half] *= decay;
      o[4 * j + 2 * half + 1] *= decay;
    }
  }
  const std::uint32_t x = shared_address(S::kRank == 1 ? m.x : m.own_x);
  wgmma_hold(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_k16<1>(o, weighted[step], wgmma_operand(x + step * 2048));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(o);
}

// Column p of X, times the weights at the chunk's end, for 16 rows: the first factor of h'.
template <class S>
__device__ __forceinline__ void load_faded(const ChunkMemory<S>& m, const Fragment& own, int step,
                                           std::uint32_t (&out)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int row = 16 * step + lane / 16 * 8 + lane % 8;
  const int p = own.row / 16 * 16 + lane / 8 % 2 * 8;
  const std::uint32_t from =
      shared_address(S::kRank == 1 ? m.x : m.own_x) + static_cast<std::uint32_t>(swizzled(row, p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 fade =
        *reinterpret_cast<const float2*>(&m.fade[16 * step + i / 2 * 8 + own.column]);
    float a;
    float b;
    unpack_bf16(out[i], a, b);
    out[i] = pack_bf16(a * fade.x, b * fade.y);
  }
}

// h' = decay h + (faded X)^T K
template <class S>
__device__ __forceinline__ void update_state(const Fragment& own, const ChunkMemory<S>& m,
                                             State<S>& h) {
  std::uint32_t faded[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) load_faded<S>(m, own, step, faded[step]);
  const float decay = m.chunk_decay;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) h[tile][i] *= decay;
    wgmma_hold(h[tile]);
  }
  wgmma_fence();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16<1>(h[tile], faded[step], wgmma_operand(shared_address(m.k[tile]) + step * 2048));
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) wgmma_hold(h[tile]);
}

// A block's way through its chunks. Both warpgroups prepare(); what else they do differs.
template <class S>
struct Walk {
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  std::uint32_t turns[S::kTurned];  // before the chunk

  __device__ __forceinline__ Walk(const ChunkedScanJob& job_in, ChunkMemory<S>& memory)
      : job(job_in), m(memory), at(job_in) {}

  __device__ __forceinline__ void start() {
    request_shared(at.begin);
    load_head<S>(job, at, m);
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const int i = j * kWarpLanes + at.lane;
      turns[j] = i < job.sizes.angles ? at.turns(job)[i] : 0;
    }
    __syncthreads();
  }

  // Addresses are cheap to find anew and dear to keep: a register that is spilled costs a trip to
  // the second-level cache, so nothing that depends on the lane may move out of the loop.
  __device__ __forceinline__ void forget_lane() {
    asm volatile("" : "+r"(at.lane), "+r"(at.warp));
  }

  __device__ __forceinline__ void request_shared(int begin) {
    if (begin + S::kTokens <= at.end) {
      request_rows<S, true>(job, at, m, begin);
    } else {
      request_rows<S, false>(job, at, m, begin);
    }
    if (at.warp == 0) request_terms<S>(job, at, m, begin);
    __pipeline_commit();
  }

  // The former chunk's are not read any more.
  __device__ __forceinline__ void request_zx(int begin, bool with_z) {
    request_columns<S::kWarpTokens>(job, at, job.x, m.x, begin, at.warp * S::kWarpTokens);
    if (with_z) {
      request_columns<2 * S::kWarpTokens>(job, at, job.z, m.z, begin, at.warp * 2 * S::kWarpTokens);
    }
    __pipeline_commit();
  }

  // Q, K, X and all weights of the chunk, ready for the products; asks for the next chunk's rows.
  __device__ __forceinline__ void prepare(int begin) {
    const int next = begin + S::kTokens;
    const bool ends_stretch = (next - at.begin) % kGridTokens == 0;
    const int kept = ends_stretch || next >= at.end ? min(next, at.end) - begin - 1 : -1;
    __pipeline_wait_prior(1);  // all but x and z
    __syncwarp();
    Phases<S> phases;
    phases.sum(at, m);
    if (at.warp == 0) weigh_chunk<S>(at.lane, !ends_stretch, m);
    __syncthreads();
    std::uint32_t own_turns[S::kTurned];
    sum_turns<S>(m, at, turns, own_turns, turns);
    rotate_chunk<S>(phases, at, own_turns, kept, m);
    __syncwarp();
    request_shared(next);
    __pipeline_wait_prior(1);  // x and z
    __syncwarp();
    spread_x<S>(job, at, begin, kept, m);
    fence_async_proxy();
    __syncthreads();
  }

  __device__ __forceinline__ void make_outputs() {
    Fragment own;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane();
      own.forget();
      request_zx(begin, true);
      prepare(begin);
      float o[kAccumulators];
      read_out<S>(own, m, o);
      if (job.y_bf16) {
        write_chunk(Outputs<S, false>{job, at, m, own, begin}, o);
      } else {
        write_chunk(Outputs<S, true>{job, at, m, own, begin}, o);
      }
      __syncthreads();
    }
    if (at.warp == 0) store_turns();
  }

  __device__ __forceinline__ void carry_state() {
    Fragment own;
    State<S> h;
    load_state<S>(job, at.ssm(job), own, h);
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane();
      own.forget();
      request_zx(begin, false);
      if ((begin - at.begin) % kGridTokens == 0) {
        add_before<S>(m, job.weights[at.head * job.tokens + begin].y, own, h);
      }
      show_state<S>(own, h, m);
      prepare(begin);
      update_state<S>(own, m, h);
      wait_for(kStateRead);
      if (job.y_bf16) {
        make_gates(Outputs<S, false>{job, at, m, own, begin});
      } else {
        make_gates(Outputs<S, true>{job, at, m, own, begin});
      }
      tell(kGatesMade);
      __syncthreads();
    }
    const ChunkPlace end(job);
    store_state<S>(job, own, h, end.ssm(job));
    store_end<S>(job, end, m);
  }

  __device__ __forceinline__ void store_turns() const {
    std::uint32_t* to = ChunkPlace(job).turns(job);
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const int i = j * kWarpLanes + at.lane;
      if (i < job.sizes.angles) to[i] = turns[j];
    }
  }
};

template <int kState, int kRank, int kTurned>
__global__ void __launch_bounds__(kChunkThreads, 2)
    scan_chunked_kernel(const __grid_constant__ ChunkedScanJob job) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // no other card has these products
  using S = ChunkShape<kState, kRank, kTurned>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Walk<S> walk(job, *reinterpret_cast<ChunkMemory<S>*>(memory));
  if (walk.at.begin >= walk.at.end) return;
  walk.start();
  if (threadIdx.x < kGroupThreads) {
    wgmma_give_registers<kOutputRegisters>();
    walk.make_outputs();
  } else {
    wgmma_take_registers<kStateRegisters>();
    walk.carry_state();
  }
#endif
}

template <int kState, int kRank, int kTurned>
void launch(const ChunkedScanJob& job, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ChunkMemory<ChunkShape<kState, kRank, kTurned>>);
  // Two blocks share a multiprocessor, but where a chunk has many tokens with large states, or
  // twice as many pairs are rotated as usual.
  static_assert(2 * (kBytes + 1024) <= 228 * 1024 || (kState == 128 && kRank <= 2) || kTurned == 2);
  const auto kernel = scan_chunked_kernel<kState, kRank, kTurned>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "mamba3_scan's shared memory");
  kernel<<<grid_blocks(job.sequences * job.sizes.heads), kChunkThreads, kBytes, stream>>>(job);
  check_launch("mamba3_scan: chunks");
}

template <int kState, int kTurned>
void launch_rank(const ChunkedScanJob& job, cudaStream_t stream) {
  switch (job.sizes.rank) {
    case 1:
      return launch<kState, 1, kTurned>(job, stream);
    case 2:
      return launch<kState, 2, kTurned>(job, stream);
    default:
      return launch<kState, 4, kTurned>(job, stream);
  }
}

bool takes_pieces(const void* rows, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(rows) | static_cast<std::uintptr_t>(stride_bytes)) %
             kPieceBytes ==
         0;
}

}  // namespace

void mamba3_scan_chunked_cuda(const Mamba3ScanArgs& args, Context& ctx) {
  ChunkedScanJob job{};
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.states = args.states;
  job.cu_seqlens = args.cu_seqlens.data();
  job.slots = args.slots.data();
  job.tokens = args.y.shape[0];
  job.sequences = static_cast<std::int64_t>(args.slots.size());
  job.z = reinterpret_cast<const __nv_bfloat16*>(args.columns.z_bf16);
  job.x = reinterpret_cast<const __nv_bfloat16*>(args.columns.x_bf16);
  job.zx_stride = args.columns.zx_stride;
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_bf16 = args.y.is_bf16();
  check_input(job.y_bf16 == (job.z != nullptr),
              "mamba3_scan: of z, x and y some are bf16 and some fp32; expected one type");
  check_input(!job.y_bf16 || (takes_pieces(job.y, 2 * job.y_stride) &&
                              takes_pieces(job.z, 2 * job.zx_stride) &&
                              takes_pieces(job.x, 2 * job.zx_stride)),
              "mamba3_scan: rows of z, x or y in bf16 do not begin on 16 bytes; expected that");
  check_input(job.tokens < (std::int64_t{1} << 30), "mamba3_scan: ", job.tokens,
              " tokens in one call; expected fewer than 2^30; shorten the segment");
  if (job.tokens == 0 || job.sequences == 0) return;
  ArenaScope scope(ctx.workspace());
  take_chunked_workspace(job, scope);
  job.nothing = job.dt;
  const cudaStream_t stream = stream_of(ctx);
  if (job.z == nullptr) round_columns(job, scope, stream);
  prepare_chunked_tokens(job, stream);
  if (job.sizes.state == 64) return launch_rank<64, 1>(job, stream);
  job.sizes.angles <= kWarpLanes ? launch_rank<128, 1>(job, stream)
                                 : launch_rank<128, 2>(job, stream);
}

}  // namespace mamba3
