#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "device/row_teams.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct EmbeddingJob {
  const std::int32_t* ids;
  std::int64_t rows;
  const std::byte* table;
  std::int64_t table_rows;
  std::int64_t d;
  float* y;
  std::int64_t y_stride;
};

template <int V>
__device__ __forceinline__ void load_widened(const float* from, float (&to)[V]) {
  load_vector<V>(from, to);
}

template <int V>
__device__ __forceinline__ void load_widened(const std::uint16_t* from, float (&to)[V]) {
  if constexpr (V == 4) {
    const ushort4 v = *reinterpret_cast<const ushort4*>(from);
    to[0] = __uint_as_float(static_cast<std::uint32_t>(v.x) << 16);
    to[1] = __uint_as_float(static_cast<std::uint32_t>(v.y) << 16);
    to[2] = __uint_as_float(static_cast<std::uint32_t>(v.z) << 16);
    to[3] = __uint_as_float(static_cast<std::uint32_t>(v.w) << 16);
  } else {
    to[0] = __uint_as_float(static_cast<std::uint32_t>(*from) << 16);
  }
}

// Whoever brings ids to the GPU checks them; one that is wrong all the same gives a row of NaNs
// instead of somebody else's memory.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const EmbeddingJob job, const RowTeams teams) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t row = teams.row();
  if (row >= job.rows) return;
  const std::int64_t id = job.ids[row];
  const bool known = id >= 0 && id < job.table_rows;
  const T* from = reinterpret_cast<const T*>(job.table) + (known ? id : 0) * job.d;
  float* to = job.y + row * job.y_stride;
  for (std::int64_t i = std::int64_t{teams.place()} * V; i < job.d; i += teams.threads * V) {
    float values[V];
    load_widened<V>(from + i, values);
    for (int v = 0; v < V; ++v) values[v] = known ? values[v] : nanf("");
    store_vector<V>(values, to + i);
  }
}

template <class T>
void launch(const EmbeddingJob& job, Context& ctx) {
  const bool vectors = reinterpret_cast<std::uintptr_t>(job.table) % (4 * sizeof(T)) == 0 &&
                       job.d % 4 == 0 && takes_vectors(job.y, job.y_stride);
  const RowTeams teams(job.d, vectors ? 4 : 1, kThreads);
  launch_dependent("embedding", vectors ? embedding_kernel<T, 4> : embedding_kernel<T, 1>,
                   {grid_blocks(job.rows, teams.rows(kThreads)), kThreads}, ctx, job, teams);
}

}  // namespace

void embedding_cuda(const EmbeddingArgs& args, Context& ctx) {
  const EmbeddingJob job{args.ids.data(),     std::ssize(args.ids), args.table.data,
                         args.table.shape[0], args.table.shape[1],  args.y.data,
                         args.y.stride[0]};
  if (job.rows == 0 || job.d == 0) return;
  if (args.table.dtype == DType::kF32) {
    launch<float>(job, ctx);
  } else {
    launch<std::uint16_t>(job, ctx);
  }
}

}  // namespace mamba3
