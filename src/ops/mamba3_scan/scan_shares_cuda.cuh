// Which stretches of which sequences the blocks of a walk take. The longest come first. Blocks of
// equal length end in rounds, and in the last one many multiprocessors would have nothing to do: 16
// sequences of 64 heads take 132 of them eight rounds for the work of 7.76. So the heads of such
// sequences, one behind the other, are shared out evenly: where a share ends within one, that is
// cut, on the grid. What is before a cut is walked first of all and what is behind it last, so that
// a multiprocessor has about one share, and the state is long there when it is asked for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Finding the order takes time with the square of the number; beyond this many it is not worth it.
constexpr std::int64_t kMostOrdered = 2048;
// Beyond this many there are so many rounds that the last one does not count.
constexpr int kMostShared = kPrepareThreads;

__device__ ScanPiece whole_sequence(const ChunkedScanJob& job, std::int64_t sequence) {
  const std::int32_t slot = job.slots[sequence];
  return {static_cast<std::int32_t>(job.cu_seqlens[sequence]),
          static_cast<std::int32_t>(job.cu_seqlens[sequence + 1]), slot, slot};
}

// Every sequence is a piece, the longest first.
__global__ void __launch_bounds__(kPrepareThreads) order_kernel(const ChunkedScanJob job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= job.sequences) return;
  if (job.sequences > kMostOrdered) {
    job.pieces[i] = whole_sequence(job, i);
    return;
  }
  const std::int64_t own = job.cu_seqlens[i + 1] - job.cu_seqlens[i];
  int before = 0;
  for (std::int64_t j = 0; j < job.sequences; ++j) {
    const std::int64_t other = job.cu_seqlens[j + 1] - job.cu_seqlens[j];
    before += other > own || (other == own && j < i) ? 1 : 0;
  }
  job.pieces[before] = whole_sequence(job, i);
}

// How many of the block's threads stand before this one, by their keys and then by their numbers.
__device__ int rank_among(const int* keys, int count, int own) {
  int before = 0;
  for (int j = 0; j < count; ++j) {
    before += keys[j] < keys[own] || (keys[j] == keys[own] && j < own) ? 1 : 0;
  }
  return before;
}

// How the heads of all sequences are shared out, in steps of the grid.
struct Shares {
  std::int64_t items;  // heads of sequences
  std::int64_t steps;  // of each item
  std::int64_t share;  // 0: nothing is cut
  int cuts;            // at most

  // `steps_each`: 0 where sequences differ.
  __device__ Shares(const ChunkedScanJob& job, int steps_each, int cuts_in)
      : items(job.sequences * job.sizes.heads),
        steps(steps_each),
        share((items * steps + cuts_in) / (cuts_in + 1)),
        cuts(cuts_in) {
    if (steps > share) share = 0;  // each item has a multiprocessor
  }
  // Where the share with this number ends within an item, as steps from its beginning; or 0.
  __device__ int first_part(int number) const {
    if (share == 0 || number >= cuts || (number + 1) * share >= items * steps) return 0;
    return static_cast<int>((number + 1) * share % steps);
  }
  __device__ std::int64_t cut_item(int number) const { return (number + 1) * share / steps; }
  __device__ bool is_cut(std::int64_t item) const {
    if (share == 0) return false;
    const std::int64_t number =
        item * steps / share;  // of the share that ends behind its beginning
    return number < cuts && (number + 1) * share < (item + 1) * steps;
  }
};

// By one block. Pieces: the first parts of cut items, the items that are whole, the last parts,
// whose longest come first. There is one for every cut that might be, and for every item.
__global__ void __launch_bounds__(kPrepareThreads)
    share_kernel(const ChunkedScanJob job, int most_cuts) {
  __shared__ int order[kMostShared];  // of the sequences
  __shared__ int keys[kPrepareThreads];
  const auto thread = static_cast<int>(threadIdx.x);
  const auto count = static_cast<int>(job.sequences);
  const int heads = job.sizes.heads;
  const auto steps_of = [](int tokens) { return (tokens + kGridTokens - 1) / kGridTokens; };
  const ScanPiece own = thread < count ? whole_sequence(job, thread) : ScanPiece{};
  keys[thread] = own.begin - own.end;
  __syncthreads();
  const int steps = steps_of(-keys[0]);
  const bool same = __syncthreads_and(thread >= count || steps_of(own.end - own.begin) == steps);
  if (thread < count) order[rank_among(keys, count, thread)] = thread;
  const Shares shares(job, same ? steps : 0, most_cuts);
  const auto item_piece = [&](std::int64_t item) {
    ScanPiece piece = whole_sequence(job, order[item / heads]);
    piece.head = static_cast<int>(item % heads);
    return piece;
  };
  const int first_steps = shares.first_part(thread);
  __syncthreads();
  keys[thread] = first_steps > 0 ? first_steps : INT32_MAX;
  __syncthreads();
  if (thread < most_cuts) {
    ScanPiece first{}, last{};
    if (first_steps > 0) {
      first = last = item_piece(shares.cut_item(thread));
      first.end = last.begin = first.begin + first_steps * kGridTokens;
      last.gate = thread + 1;
      first.gate = -last.gate;
    }
    job.pieces[thread] = first;
    job.pieces[most_cuts + shares.items + rank_among(keys, most_cuts, thread)] = last;
  }
  if (thread <= most_cuts) job.gates[thread] = 0;
  if (thread == 0) *job.taken = 0;
  for (std::int64_t item = thread; item < shares.items; item += kPrepareThreads) {
    job.pieces[most_cuts + item] = shares.is_cut(item) ? ScanPiece{} : item_piece(item);
  }
}

// Finds the job's pieces; returns how many there are.
std::int64_t share_sequences(ChunkedScanJob& job, std::int64_t multiprocessors, ArenaScope& scope,
                             cudaStream_t stream) {
  if (job.sequences > kMostShared) {
    job.pieces = scope.allocate<ScanPiece>(job.sequences);
    job.piece_heads = job.sizes.heads;
    order_kernel<<<grid_blocks(job.sequences, kPrepareThreads), kPrepareThreads, 0, stream>>>(job);
    check_launch("mamba3_scan: order");
    return job.sequences;
  }
  const auto most_cuts =
      static_cast<int>(std::min<std::int64_t>(multiprocessors, kPrepareThreads)) - 1;
  const std::int64_t count = job.sequences * job.sizes.heads + 2 * most_cuts;
  job.pieces = scope.allocate<ScanPiece>(count);
  job.gates = scope.allocate<int>(most_cuts + 1);
  job.taken = scope.allocate<unsigned>(1);
  job.piece_heads = 1;
  share_kernel<<<1, kPrepareThreads, 0, stream>>>(job, most_cuts);
  check_launch("mamba3_scan: shares");
  return count;
}

}  // namespace
}  // namespace mamba3
