// The matrix products of one chunk with inputs rounded to bf16: see scan_matmul-inl.h for what each
// computes. To be called only where bf16_products_available().
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_chunk.h"

namespace mamba3 {

// From k.
void bf16_pack_keys(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// x and x_state from the inputs.
void bf16_pack_x(const Mamba3Dims& dims, const Mamba3Params& params, const ChunkSizes& sizes,
                 const ChunkInputs& in, std::int64_t x_stride, const ChunkScratch& scratch);
// From q.
void bf16_pack_queries(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// From the state.
void bf16_pack_state(const ChunkSizes& sizes, const ChunkScratch& scratch);

// Rows [begin, end) of the state; begin is a multiple of kRowPadding. Packs them, too.
void bf16_add_carried(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t begin,
                      std::int64_t end);
void bf16_scores(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
void bf16_outputs(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows);
// What tokens read of themselves, in fp32, where there is one rank: bf16_outputs() leaves it out.
// One product without others beside it, whose roundings nothing averages.
void bf16_add_own(const Mamba3Dims& dims, const Mamba3Params& params, const ChunkSizes& sizes,
                  const ChunkInputs& in, std::int64_t x_stride, const ChunkScratch& scratch);
// Folds what the chunk adds into the state, or stores it where no decay is given.
void bf16_state(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows,
                const float* decay_of_chunk);

}  // namespace mamba3
