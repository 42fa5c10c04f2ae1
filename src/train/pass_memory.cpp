#include "train/pass_memory.h"

#include "model/mixer.h"

namespace mamba3 {
namespace {

Rows take_rows(std::int64_t rows, std::int64_t columns, Carver& carver) {
  return {carver.take<float>(rows * columns), {rows, columns}};
}

}  // namespace

PassMemory::PassMemory(const ModelConfig& config, const PassShape& shape, Carver& carver)
    : ids(carver.take<std::int32_t>(shape.tokens)),
      targets(carver.take<std::int32_t>(shape.tokens)),
      cu_seqlens(carver.take<std::int64_t>(shape.sequences + 1)),
      slots(carver.take<std::int32_t>(shape.sequences)),
      starts(carver.take<std::int64_t>(shape.sequences)),
      ends(carver.take<std::int64_t>(shape.sequences)),
      hidden(take_rows(shape.tokens, config.width, carver)),
      config_(config),
      shape_(shape) {
  states = take_states(carver);
  normed = activations(config.width, carver);
  for (std::int64_t l = 0; l < config.layers; ++l) {
    if (l == 0) {
      tapes.push_back(first_tape(carver));
    } else {
      tapes.push_back(shape.gradients ? next_tape(tapes.back(), carver) : tapes.back());
    }
  }
  last =
      shape.gradients ? take_rows(shape.tokens, config.width, carver) : tapes.back().before_mixer;
  // The two halves of a block are never at work at the same time.
  Carver mlp = carver, mixer = carver;
  gated = activations(config.mlp_hidden, mlp);
  if (shape.gradients) {
    grad_gated = activations(config.mlp_hidden, mlp);
    take_mixer_gradients(mixer);
  }
  carver = mlp.bytes() > mixer.bytes() ? mlp : mixer;
  if (shape.gradients) take_stream_gradients(carver);
}

Matrix PassMemory::activations(std::int64_t columns, Carver& carver) const {
  if (!shape_.bf16_activations) return take_rows(shape_.tokens, columns, carver);
  return TensorView<Bf16, 2>(carver.take<Bf16>(shape_.tokens * columns), {shape_.tokens, columns});
}

void PassMemory::take_projected(BlockTape& tape, Carver& carver) const {
  const std::int64_t apart = shape_.bf16_activations ? 2 * config_.inner() : 0;
  if (apart > 0) tape.zx = activations(apart, carver);
  tape.columns = take_rows(shape_.tokens, config_.in_proj_rows() - apart, carver);
}

void PassMemory::take_mlp(BlockTape& tape, Carver& carver) const {
  if (config_.mlp_hidden == 0) return;
  tape.before_mlp = take_rows(shape_.tokens, config_.width, carver);
  tape.wide = activations(2 * config_.mlp_hidden, carver);
}

BlockTape PassMemory::first_tape(Carver& carver) const {
  BlockTape tape;
  tape.before_mixer = take_rows(shape_.tokens, config_.width, carver);
  take_projected(tape, carver);
  tape.mixed = activations(config_.inner(), carver);
  take_mlp(tape, carver);
  return tape;
}

// Shares the memory of what is computed again.
BlockTape PassMemory::next_tape(const BlockTape& before, Carver& carver) const {
  if (shape_.recompute == Recompute::kNone) return first_tape(carver);
  BlockTape tape = before;
  tape.before_mixer = take_rows(shape_.tokens, config_.width, carver);
  if (shape_.recompute == Recompute::kBlock) return tape;
  take_projected(tape, carver);
  take_mlp(tape, carver);
  return tape;
}

LayerStates PassMemory::take_states(Carver& carver) const {
  const Mamba3Dims dims = mixer_dims(config_);
  const std::int64_t elements = shape_.sequences * LayerStates::row_elements(dims);
  return {dims, shape_.sequences, carver.take<float>(elements)};
}

void PassMemory::take_mixer_gradients(Carver& carver) {
  grad_mixed = activations(config_.inner(), carver);
  grad_projected = activations(projected_columns(config_, shape_), carver);
  grad_states = take_states(carver);
}

void PassMemory::take_stream_gradients(Carver& carver) {
  grad_stream = take_rows(shape_.tokens, config_.width, carver);
  grad_half = shape_.bf16_activations ? activations(config_.width, carver) : Matrix(grad_stream);
  Carver same(reinterpret_cast<std::byte*>(hidden.data));
  grad_normed = activations(config_.width, same);
}

std::int64_t projected_columns(const ModelConfig& config, const PassShape& shape) {
  constexpr std::int64_t kPiece = 8;  // bf16 numbers in 16 bytes
  const std::int64_t e = config.in_proj_rows();
  return shape.bf16_activations ? (e + kPiece - 1) / kPiece * kPiece : e;
}

std::size_t pass_bytes(const ModelConfig& config, const PassShape& shape) {
  Carver measure(nullptr);
  const PassMemory memory(config, shape, measure);
  return measure.bytes();
}

}  // namespace mamba3
