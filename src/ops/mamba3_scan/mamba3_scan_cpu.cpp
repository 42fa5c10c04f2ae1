#include <algorithm>
#include <cstring>

#include "ops/mamba3_scan/scan_kernels.h"
#include "ops/mamba3_scan/scan_products_avx512bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/mamba3_scan/mamba3_scan_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/mamba3_common/mamba3_token-inl.h"
#include "ops/mamba3_scan/scan_matmul-inl.h"
#include "ops/mamba3_scan/scan_prepare-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// One head of one slot.
struct HeadState {
  std::uint32_t* turns;  // [s]
  float* ssm;            // [n, p]
  float* k;              // [r, n] rows k_stride apart
  float* v;              // [p]
  std::int64_t k_stride;
};

HeadState head_state(const Mamba3ScanArgs& args, std::int64_t slot, std::int64_t head) {
  const Mamba3Dims& dims = args.dims;
  const Mamba3States& states = args.states;
  return {states.turns + slot * states.turns_stride + head * dims.angles,
          states.ssm + slot * states.ssm_stride + head * dims.state * dims.head_dim,
          states.k + slot * states.k_stride + head * dims.state,
          states.v + slot * states.v_stride + head * dims.head_dim, dims.heads * dims.state};
}

ChunkScratch worker_scratch(const ScanJob& job, int worker) {
  Carver carver(job.scratch + static_cast<std::size_t>(worker) * job.scratch_bytes);
  return ChunkScratch(job.args.dims, job.sizes, job.bf16_products, carver);
}

// The chunk-th chunk of a part.
ChunkInputs chunk_of_part(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                          std::int64_t head) {
  const Mamba3Dims& dims = job.args.dims;
  const Mamba3Columns& columns = job.args.columns;
  const std::int64_t begin = part.begin + chunk * job.sizes.tokens;
  const std::int64_t index = begin - job.tokens.begin;
  const std::int64_t group = head / (dims.heads / dims.groups);
  const std::int64_t shared = (index * dims.rank * dims.groups + group) * dims.state;
  ChunkInputs in;
  in.tokens = std::min(part.end - begin, job.sizes.tokens);
  in.head = head;
  in.scalars = job.tokens.scalars + head * job.tokens.capacity + index;
  in.half_tanh = job.tokens.half_tanh + index * dims.angles;
  in.finite_angles = job.tokens.finite_angles + index;
  in.in_b = job.tokens.in_b + shared;
  in.out_c = job.tokens.out_c + shared;
  in.x = columns.x + begin * columns.row_stride + head * dims.head_dim;
  in.z = columns.z + begin * columns.row_stride + head * dims.head_dim;
  in.y_stride = job.args.y.stride[0];
  in.y = job.args.y.floats() + begin * in.y_stride + head * dims.head_dim;
  return in;
}

void copy_rows(const float* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns,
               float* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride,
                static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// The products, rounded or not.
void pack_keys(const ScanJob& job, const ChunkInputs& in, const ChunkScratch& scratch) {
  const Mamba3Dims& dims = job.args.dims;
  const Mamba3Params& params = job.args.params;
  const ChunkSizes& sizes = job.sizes;
  const std::int64_t rows = in.tokens * sizes.rank;
  const std::int64_t x_stride = job.args.columns.row_stride;
#if HWY_ARCH_X86
  if (job.bf16_products) {
    bf16_pack_keys(sizes, scratch, rows);
    return bf16_pack_x(dims, params, sizes, in, x_stride, scratch);
  }
#endif
  transpose(scratch.k, sizes.n_stride, rows, sizes.n, scratch.k_t, sizes.row_stride);
  chunk_x(dims, params, sizes, in, x_stride, scratch);
}

void multiply_outputs(const ScanJob& job, const ChunkInputs& in, const ChunkScratch& scratch) {
  const std::int64_t rows = in.tokens * job.sizes.rank;
#if HWY_ARCH_X86
  if (job.bf16_products) {
    bf16_pack_queries(job.sizes, scratch, rows);
    bf16_scores(job.sizes, scratch, rows);
    bf16_outputs(job.sizes, scratch, rows);
    return bf16_add_own(job.args.dims, job.args.params, job.sizes, in, job.args.columns.row_stride,
                        scratch);
  }
#endif
  chunk_scores(job.sizes, scratch, rows);
  chunk_outputs(job.sizes, scratch, rows);
}

void store_chunk(const ScanJob& job, std::int64_t tokens, const ChunkScratch& scratch) {
  const std::int64_t rows = tokens * job.sizes.rank;
#if HWY_ARCH_X86
  if (job.bf16_products) return bf16_state(job.sizes, scratch, rows, nullptr);
#endif
  chunk_state<false>(job.sizes, scratch, rows, 0.0f, false);
}

// Everything that the state after the chunk needs: K, X, their weights.
void prepare_keys(const ScanJob& job, const ChunkInputs& in, std::uint32_t* turns,
                  const ChunkScratch& scratch) {
  const Mamba3Dims& dims = job.args.dims;
  const Mamba3Params& params = job.args.params;
  chunk_scalars(job.sizes, in, scratch);
  chunk_phases(dims, in, job.args.columns.row_stride, turns, scratch);
  chunk_rows(dims, job.sizes, in, scratch, in.in_b, params.in_b_bias, scratch.k);
  pack_keys(job, in, scratch);
}

// From the state at the chunk's start, with the carried term in it, to y.
void write_outputs(const ScanJob& job, const ChunkInputs& in, const ChunkScratch& scratch) {
  const Mamba3Dims& dims = job.args.dims;
  chunk_rows(dims, job.sizes, in, scratch, in.out_c, job.args.params.out_c_bias, scratch.q);
  chunk_weights(job.sizes, in, scratch);
  multiply_outputs(job, in, scratch);
  chunk_gate(dims, job.args.params, job.sizes, in, job.args.columns.row_stride, scratch);
}

// The last token's K and X: what the next token's carried term is made of.
void keep_last(const ScanJob& job, const ChunkInputs& in, const ChunkScratch& scratch,
               const HeadState& state) {
  const std::int64_t last = in.tokens - 1;
  copy_rows(scratch.k + last * job.sizes.rank * job.sizes.n_stride, job.sizes.n_stride,
            job.sizes.rank, job.sizes.n, state.k, state.k_stride);
  copy_rows(in.x + last * job.args.columns.row_stride, 0, 1, job.sizes.p, state.v, 0);
}

// What the token before a chunk has left to add to the state: its K and X.
struct Previous {
  const float* x;
  const float* k;  // [r, n]
  std::int64_t k_stride;
};

void prepare_carried(const ScanJob& job, const ChunkInputs& in, const Previous& previous,
                     const ChunkScratch& scratch) {
  const ChunkSizes& sizes = job.sizes;
  const auto carry = static_cast<float>(in.scalars[0].carry);
  for (std::int64_t r = 0; r < sizes.rank; ++r) {
    scale_x(job.args.dims, job.args.params, in.head, r, previous.x, carry,
            scratch.x_carried + r * sizes.p_stride);
  }
  copy_rows(previous.k, previous.k_stride, sizes.rank, sizes.n, scratch.k_carried, sizes.n_stride);
}

// Adds it, to rows [begin, end) of the state.
void carry_over(const ScanJob& job, const ChunkInputs& in, const Previous& previous,
                std::int64_t begin, std::int64_t end, const ChunkScratch& scratch) {
  prepare_carried(job, in, previous, scratch);
#if HWY_ARCH_X86
  if (job.bf16_products) return bf16_add_carried(job.sizes, scratch, begin, end);
#endif
  add_carried(job.sizes, scratch, begin, end);
}

// From the state at the chunk's start to that at its end; with `next`, the chunk after it, also
// what that one's first step carries over.
void fold_chunk(const ScanJob& job, const ChunkInputs& in, const ChunkInputs* next,
                const ChunkScratch& scratch) {
  const std::int64_t last = in.tokens - 1;
  const std::int64_t rows = in.tokens * job.sizes.rank;
  const float& decay = scratch.decay[last];
  if (next != nullptr) {
    const float* k = scratch.k + last * job.sizes.rank * job.sizes.n_stride;
    prepare_carried(job, *next, {in.x + last * job.args.columns.row_stride, k, job.sizes.n_stride},
                    scratch);
  }
#if HWY_ARCH_X86
  if (job.bf16_products) {
    bf16_state(job.sizes, scratch, rows, &decay);
    if (next != nullptr) bf16_add_carried(job.sizes, scratch, 0, job.sizes.n);
    return;
  }
#endif
  chunk_state<true>(job.sizes, scratch, rows, decay, next != nullptr);
}

void prepare_tokens_of(const ScanJob& job, std::int64_t begin, std::int64_t end) {
  const Mamba3Dims& dims = job.args.dims;
  const Mamba3Params& params = job.args.params;
  const Mamba3Columns& columns = job.args.columns;
  const std::int64_t shared_rows = dims.rank * dims.groups;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t from = t * columns.row_stride;
    const std::int64_t index = t - job.tokens.begin;
    double* half_tanh = job.tokens.half_tanh + index * dims.angles;
    turn_rates(dims, columns.angle_raw, from, half_tanh);
    job.tokens.finite_angles[index] = std::all_of(
        half_tanh, half_tanh + dims.angles, [](double angle) { return std::isfinite(angle); });
    for (std::int64_t i = 0; i < shared_rows; ++i) {
      const std::int64_t to = (index * shared_rows + i) * dims.state;
      norm_row(columns.in_b + from + i * dims.state, params.in_b_norm, dims.state,
               job.tokens.in_b + to);
      norm_row(columns.out_c + from + i * dims.state, params.out_c_norm, dims.state,
               job.tokens.out_c + to);
    }
    for (std::int64_t head = 0; head < dims.heads; ++head) {
      job.tokens.scalars[head * job.tokens.capacity + index] =
          token_scalars(dims, columns.dt_raw[from + head], params.dt_bias[head],
                        columns.decay_raw[from + head], columns.trap_raw[from + head]);
    }
  }
}

void scan_part_of(const ScanJob& job, const ScanPart& part, std::int64_t head, int worker) {
  const ChunkSizes& sizes = job.sizes;
  const ChunkScratch scratch = worker_scratch(job, worker);
  const HeadState state = head_state(job.args, part.slot, head);
  copy_rows(state.ssm, sizes.p, sizes.n, sizes.p, scratch.state, sizes.p_stride);
  const std::int64_t chunks = (part.end - part.begin + sizes.tokens - 1) / sizes.tokens;
  ChunkInputs in = chunk_of_part(job, part, 0, head);
  carry_over(job, in, {state.v, state.k, state.k_stride}, 0, sizes.n, scratch);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    prepare_keys(job, in, state.turns, scratch);
    write_outputs(job, in, scratch);
    const bool last = chunk + 1 == chunks;
    const ChunkInputs next = chunk_of_part(job, part, last ? chunk : chunk + 1, head);
    fold_chunk(job, in, last ? nullptr : &next, scratch);
    if (last) keep_last(job, in, scratch, state);
    in = next;
  }
  copy_rows(scratch.state, sizes.p_stride, sizes.n, sizes.p, state.ssm, sizes.p);
}

void sum_chunk_turns_of(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                        std::int64_t head, const ChunkStates& states) {
  const std::int64_t s = job.args.dims.angles;
  const ChunkInputs in = chunk_of_part(job, part, chunk, head);
  std::uint32_t* turns = states.turns + (chunk * job.args.dims.heads + head) * s;
  std::fill_n(turns, s, 0u);
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    advance_turns(in.half_tanh + t * s, in.scalars[t].turning, s, turns);
  }
}

void chunk_local_state_of(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                          std::int64_t head, int worker, const ChunkStates& states) {
  const ChunkSizes& sizes = job.sizes;
  const Mamba3Dims& dims = job.args.dims;
  const std::int64_t at = chunk * dims.heads + head;
  ChunkScratch scratch = worker_scratch(job, worker);
  const ChunkInputs in = chunk_of_part(job, part, chunk, head);
  // The turns at the chunk's start are needed again for its outputs, so they move in a copy.
  std::copy_n(states.turns + at * dims.angles, dims.angles, scratch.turns);
  prepare_keys(job, in, scratch.turns, scratch);
  scratch.state = states.state + at * sizes.state_elements;
  store_chunk(job, in.tokens, scratch);
  states.decay[at] = scratch.decay[in.tokens - 1];
  copy_rows(scratch.k + (in.tokens - 1) * sizes.rank * sizes.n_stride, sizes.n_stride, sizes.rank,
            sizes.n, states.k_last + at * sizes.rank * sizes.n, sizes.n);
}

void chain_states_of(const ScanJob& job, const ScanPart& part, std::int64_t head,
                     std::int64_t begin, std::int64_t end, int worker, const ChunkStates& states) {
  const ChunkSizes& sizes = job.sizes;
  const std::int64_t heads = job.args.dims.heads;
  const ChunkScratch scratch = worker_scratch(job, worker);
  const HeadState state = head_state(job.args, part.slot, head);
  const std::int64_t chunks = (part.end - part.begin + sizes.tokens - 1) / sizes.tokens;
  copy_rows(state.ssm + begin * sizes.p, sizes.p, end - begin, sizes.p,
            scratch.state + begin * sizes.p_stride, sizes.p_stride);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t at = chunk * heads + head;
    const ChunkInputs in = chunk_of_part(job, part, chunk, head);
    const bool first = chunk == 0;
    carry_over(job, in,
               first ? Previous{state.v, state.k, state.k_stride}
                     : Previous{in.x - job.args.columns.row_stride,
                                states.k_last + (at - heads) * sizes.rank * sizes.n, sizes.n},
               begin, end, scratch);
    fold_stored(sizes, states.decay[at], begin, end, scratch.state,
                states.state + at * sizes.state_elements);
  }
  copy_rows(scratch.state + begin * sizes.p_stride, sizes.p_stride, end - begin, sizes.p,
            state.ssm + begin * sizes.p, sizes.p);
}

void chunk_outputs_from_of(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                           std::int64_t head, int worker, const ChunkStates& states) {
  const std::int64_t at = chunk * job.args.dims.heads + head;
  ChunkScratch scratch = worker_scratch(job, worker);
  const ChunkInputs in = chunk_of_part(job, part, chunk, head);
  prepare_keys(job, in, states.turns + at * job.args.dims.angles, scratch);
  scratch.state = states.state + at * job.sizes.state_elements;
#if HWY_ARCH_X86
  if (job.bf16_products) bf16_pack_state(job.sizes, scratch);
#endif
  write_outputs(job, in, scratch);
  const std::int64_t end = part.begin + chunk * job.sizes.tokens + in.tokens;
  if (end == part.end) keep_last(job, in, scratch, head_state(job.args, part.slot, head));
}

}  // namespace
}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(prepare_tokens_of);
HWY_EXPORT(scan_part_of);
HWY_EXPORT(sum_chunk_turns_of);
HWY_EXPORT(chunk_local_state_of);
HWY_EXPORT(chain_states_of);
HWY_EXPORT(chunk_outputs_from_of);

}  // namespace

void prepare_tokens(const ScanJob& job, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(prepare_tokens_of)(job, begin, end);
}

void scan_part(const ScanJob& job, const ScanPart& part, std::int64_t head, int worker) {
  HWY_DYNAMIC_DISPATCH(scan_part_of)(job, part, head, worker);
}

void sum_chunk_turns(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                     std::int64_t head, const ChunkStates& states) {
  HWY_DYNAMIC_DISPATCH(sum_chunk_turns_of)(job, part, chunk, head, states);
}

void chunk_local_state(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                       std::int64_t head, int worker, const ChunkStates& states) {
  HWY_DYNAMIC_DISPATCH(chunk_local_state_of)(job, part, chunk, head, worker, states);
}

void chain_states(const ScanJob& job, const ScanPart& part, std::int64_t head, std::int64_t begin,
                  std::int64_t end, int worker, const ChunkStates& states) {
  HWY_DYNAMIC_DISPATCH(chain_states_of)(job, part, head, begin, end, worker, states);
}

void chunk_outputs_from(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                        std::int64_t head, int worker, const ChunkStates& states) {
  HWY_DYNAMIC_DISPATCH(chunk_outputs_from_of)(job, part, chunk, head, worker, states);
}

}  // namespace mamba3
#endif  // HWY_ONCE
