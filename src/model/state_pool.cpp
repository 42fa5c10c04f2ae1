#include "model/state_pool.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kLineElements = 16;  // a cache line of 4-byte elements

std::int64_t round_up(std::int64_t count) {
  return (count + kLineElements - 1) / kLineElements * kLineElements;
}

// [rows, cols] -> [cols, rows]
void transpose(const float* from, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) to[j * rows + i] = from[i * cols + j];
  }
}

}  // namespace

StatePool::Impl::Impl(const ModelConfig& config_in, std::int64_t slots_in)
    : config(config_in), slots(slots_in), positions(static_cast<std::size_t>(slots_in), 0) {
  const std::int64_t heads = config.heads();
  turns_count = round_up(heads * config.mixer.angles());
  ssm_count = round_up(heads * config.mixer.head_dim * config.mixer.state);
  k_count = round_up(config.mixer.rank * heads * config.mixer.state);
  v_count = round_up(heads * config.mixer.head_dim);
  turns_per_slot = config.layers * turns_count;
  values_per_slot = config.layers * (ssm_count + k_count + v_count);
  const auto bytes = static_cast<std::size_t>(4 * slots * (turns_per_slot + values_per_slot));
  memory = allocate_aligned(bytes);
  if (!memory) {
    fail(ErrorCode::kUnavailable, "no memory for the states of ", slots, " sequences of ",
         4 * (turns_per_slot + values_per_slot), " bytes each; use a smaller batch");
  }
  std::memset(memory.get(), 0, bytes);
  values = reinterpret_cast<float*>(memory.get());
  turns = reinterpret_cast<std::uint32_t*>(values + slots * values_per_slot);
}

Mamba3States StatePool::Impl::layer(std::int64_t index) {
  Mamba3States out;
  out.slots = slots;
  out.turns = turns + index * turns_count;
  out.ssm = values + index * (ssm_count + k_count + v_count);
  out.k = out.ssm + ssm_count;
  out.v = out.k + k_count;
  out.turns_stride = turns_per_slot;
  out.ssm_stride = out.k_stride = out.v_stride = values_per_slot;
  return out;
}

void StatePool::Impl::check_slot(std::int32_t slot) const {
  check_input(slot >= 0 && slot < slots, "slot ", slot, " does not exist; this pool has ", slots);
}

StatePool::StatePool(const ModelConfig& config, std::int64_t slots) {
  check_input(slots >= 1, "a state pool of ", slots, " slots; expected at least 1");
  impl_ = std::make_unique<Impl>(config, slots);
}
StatePool::~StatePool() = default;
StatePool::StatePool(StatePool&&) noexcept = default;
StatePool& StatePool::operator=(StatePool&&) noexcept = default;

std::int64_t StatePool::slots() const {
  return impl_->slots;
}

void StatePool::reset(std::int32_t slot) {
  impl_->check_slot(slot);
  std::fill_n(impl_->turns + slot * impl_->turns_per_slot, impl_->turns_per_slot, 0u);
  std::fill_n(impl_->values + slot * impl_->values_per_slot, impl_->values_per_slot, 0.0f);
  impl_->positions[slot] = 0;
}

void StatePool::fork(std::int32_t from, std::int32_t to) {
  impl_->check_slot(from);
  impl_->check_slot(to);
  if (from == to) return;
  std::copy_n(impl_->turns + from * impl_->turns_per_slot, impl_->turns_per_slot,
              impl_->turns + to * impl_->turns_per_slot);
  std::copy_n(impl_->values + from * impl_->values_per_slot, impl_->values_per_slot,
              impl_->values + to * impl_->values_per_slot);
  impl_->positions[to] = impl_->positions[from];
}

std::int64_t StatePool::position(std::int32_t slot) const {
  impl_->check_slot(slot);
  return impl_->positions[slot];
}

// A slot holds h as [h, n, p] and K as the ops want them; the portable state is canonical, h [h, p,
// n].
SequenceState StatePool::export_slot(std::int32_t slot, std::uint64_t model_fingerprint) const {
  impl_->check_slot(slot);
  const ModelConfig& config = impl_->config;
  const std::int64_t heads = config.heads(), p = config.mixer.head_dim, n = config.mixer.state;
  SequenceState state(config, model_fingerprint);
  state.set_position(impl_->positions[slot]);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const Mamba3States from = impl_->layer(layer);
    const SequenceState::Parts to = state.parts(layer);
    std::copy_n(from.turns + slot * from.turns_stride, heads * config.mixer.angles(), to.turns);
    for (std::int64_t h = 0; h < heads; ++h) {
      transpose(from.ssm + slot * from.ssm_stride + h * n * p, n, p, to.ssm + h * n * p);
    }
    std::copy_n(from.k + slot * from.k_stride, config.mixer.rank * heads * n, to.k);
    std::copy_n(from.v + slot * from.v_stride, heads * p, to.v);
  }
  return state;
}

void StatePool::import_slot(std::int32_t slot, const SequenceState& state) {
  impl_->check_slot(slot);
  const ModelConfig& config = impl_->config;
  check_input(state.layers() == config.layers, "a state of ", state.layers(), " layers; expected ",
              config.layers);
  const std::int64_t heads = config.heads(), p = config.mixer.head_dim, n = config.mixer.state;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const SequenceState::ConstParts from = state.parts(layer);
    const Mamba3States to = impl_->layer(layer);
    std::copy_n(from.turns, heads * config.mixer.angles(), to.turns + slot * to.turns_stride);
    for (std::int64_t h = 0; h < heads; ++h) {
      transpose(from.ssm + h * n * p, p, n, to.ssm + slot * to.ssm_stride + h * n * p);
    }
    std::copy_n(from.k, config.mixer.rank * heads * n, to.k + slot * to.k_stride);
    std::copy_n(from.v, heads * p, to.v + slot * to.v_stride);
  }
  impl_->positions[slot] = state.position();
}

}  // namespace mamba3
