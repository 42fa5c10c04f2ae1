// The matrix products of one chunk with inputs rounded to bf16: see scan_matmul-inl.h for what each
// computes. To be called only where bf16_products_available().
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_chunk.h"

namespace mamba3 {

// From k, x and x_state.
void bf16_pack_keys(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// From q.
void bf16_pack_queries(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// From the state.
void bf16_pack_state(const ChunkSizes& sizes, const ChunkScratch& scratch);

void bf16_scores(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
void bf16_outputs(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// Folds what the chunk adds into the state, or stores it where no decay is given.
void bf16_state(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows,
                const float* decay_of_chunk);

}  // namespace mamba3
