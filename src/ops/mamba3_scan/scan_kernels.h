// The steps of mamba3_scan that run on a worker, compiled for every instruction set and chosen at
// run time. Two ways to go through a stretch of one sequence give the same bits: scan_part() walks
// its chunks in order; the others take all chunks at once, in four steps with a barrier after each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/mamba3_scan/carver.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan/scan_chunk.h"

namespace mamba3 {

// What all heads share of the tokens [begin, begin + capacity).
struct TokenBuffers {
  TokenBuffers(const Mamba3Dims& dims, std::int64_t capacity, Carver& carver);

  std::int64_t begin = 0;
  std::int64_t capacity;
  TokenScalars* scalars;        // [h, capacity]
  double* half_tanh;            // [capacity, s]
  std::uint8_t* finite_angles;  // [capacity]
  float* in_b;                  // [capacity, r, g, n] normalised
  float* out_c;                 // [capacity, r, g, n] normalised
};

// A stretch of one sequence: from a chunk boundary to another or to the sequence's end.
struct ScanPart {
  std::int64_t slot = 0;
  std::int64_t begin = 0;  // tokens
  std::int64_t end = 0;
};

// What the steps of the parallel walk tell each other about the chunks of one part.
struct ChunkStates {
  ChunkStates(const Mamba3Dims& dims, const ChunkSizes& sizes, std::int64_t chunks, Carver& carver);

  std::uint32_t* turns;  // [chunks, h, s] moved by the chunk; then: at its start
  float* state;          // [chunks, h, state] what the chunk adds; then: what it starts from
  float* k_last;         // [chunks, h, r, n] K of the chunk's last token
  float* decay;          // [chunks, h] over the whole chunk
};

struct ScanJob {
  const Mamba3ScanArgs& args;
  ChunkSizes sizes;
  bool bf16_products;  // asked for, and this machine has them
  TokenBuffers tokens;
  std::byte* scratch;  // one ChunkScratch a worker
  std::size_t scratch_bytes;
};

// Scalars, tanh and norms of tokens [begin, end).
void prepare_tokens(const ScanJob& job, std::int64_t begin, std::int64_t end);

void scan_part(const ScanJob& job, const ScanPart& part, std::int64_t head, int worker);

// The parallel walk. 1: for each chunk and head.
void sum_chunk_turns(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                     std::int64_t head, const ChunkStates& states);
// 2: the turns of the chunks become those at their starts (chain_turns). 3: for each chunk and
// head.
void chunk_local_state(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                       std::int64_t head, int worker, const ChunkStates& states);
// 4: for each head and rows [begin, end) of the state; leaves the slot's state at the end.
void chain_states(const ScanJob& job, const ScanPart& part, std::int64_t head, std::int64_t begin,
                  std::int64_t end, int worker, const ChunkStates& states);
// 5: for each chunk and head; the last chunk leaves the slot's k and v.
void chunk_outputs_from(const ScanJob& job, const ScanPart& part, std::int64_t chunk,
                        std::int64_t head, int worker, const ChunkStates& states);

}  // namespace mamba3
