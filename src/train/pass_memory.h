// The memory of one pass forward and back: what is kept of each block for the way back, and what
// all blocks share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "mamba3/config.h"
#include "ops/mamba3_scan/carver.h"
#include "train/layer_states.h"

namespace mamba3 {

// What is computed again on the way back instead of being kept, of each token and layer; no bit
// changes. kNone: norms and gates alone, 2 d + e + h p + 2 f numbers are kept; kScan: the scans'
// outputs too, 2 d + e + 2 f are kept; kBlock: all but the residual stream, d are kept.
enum class Recompute : std::uint8_t { kNone, kScan, kBlock };

struct PassShape {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  // In fp32 are then only the residual stream with its gradient, what ends a half block, and of
  // in_proj's columns all but z and x.
  bool bf16_activations = false;
  bool gradients = false;  // false: only the loss is wanted, and nothing is kept
  Recompute recompute = Recompute::kNone;
};

using Rows = TensorView<float, 2>;

// What the way back reads again of one block.
struct BlockTape {
  Rows before_mixer;  // [t, d], the residual stream as the norm reads it
  Matrix zx;          // [t, 2 h p] bf16: z and x; no data: they are columns of the next
  Rows columns;       // [t, e], or [t, e - 2 h p]
  Matrix mixed;       // [t, h p], what out_proj reads
  Rows before_mlp;    // [t, d]
  Matrix wide;        // [t, 2 f], what fc1 gives; on the way back its gradient
};

struct PassMemory {
  PassMemory(const ModelConfig& config, const PassShape& shape, Carver& carver);

  std::int32_t *ids, *targets;  // [t]
  std::int64_t* cu_seqlens;     // [q + 1]
  std::int32_t* slots;          // [q]
  std::int64_t *starts, *ends;  // [q], where lanes carry states
  LayerStates states;
  Rows hidden;                   // [t, d], what a half block gives
  Matrix normed;                 // [t, d], a norm's output
  std::vector<BlockTape> tapes;  // of each block; without gradients all are one
  Rows last;                     // [t, d], the residual stream as the last norm reads it
  Matrix gated;                  // [t, f]

  // With gradients only.
  Rows grad_stream;       // [t, d]
  Matrix grad_half;       // [t, d], grad_stream as products read it
  Matrix grad_normed;     // [t, d], of a norm's output; the memory of hidden
  Matrix grad_gated;      // [t, f]
  Matrix grad_mixed;      // [t, h p]
  Matrix grad_projected;  // [t, projected_columns()]
  LayerStates grad_states;

 private:
  Matrix activations(std::int64_t columns, Carver& carver) const;
  void take_projected(BlockTape& tape, Carver& carver) const;
  void take_mlp(BlockTape& tape, Carver& carver) const;
  BlockTape first_tape(Carver& carver) const;
  BlockTape next_tape(const BlockTape& before, Carver& carver) const;
  LayerStates take_states(Carver& carver) const;
  void take_mixer_gradients(Carver& carver);
  void take_stream_gradients(Carver& carver);

  const ModelConfig& config_;
  PassShape shape_;
};

// e, and in bf16 as many columns of zeros as make rows of whole 16 bytes.
std::int64_t projected_columns(const ModelConfig& config, const PassShape& shape);

std::size_t pass_bytes(const ModelConfig& config, const PassShape& shape);

}  // namespace mamba3
