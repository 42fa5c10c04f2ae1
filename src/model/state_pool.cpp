#include "model/state_pool.h"

#include <algorithm>

#include "core/check.h"
#include "core/host_memory.h"
#include "model/mixer.h"

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

// The host's system promises memory that it has not got, and ends a process that then writes to it.
Memory states_memory(std::int64_t slots, std::int64_t slot_bytes, const std::shared_ptr<Gpu>& gpu) {
  const std::int64_t bytes = slots * slot_bytes;
  if (!gpu) {
    const std::int64_t free_bytes = available_memory_bytes();
    if (bytes > free_bytes) {
      fail(ErrorCode::kUnavailable, "the states of ", slots, " sequences need ", gigabytes(bytes),
           "; expected at most what this process may use, ", gigabytes(free_bytes), "; ",
           free_bytes / slot_bytes, " sequences fit: use a smaller batch");
    }
  }
  Memory memory = allocate_memory(static_cast<std::size_t>(bytes), gpu);
  if (!memory) {
    fail(ErrorCode::kUnavailable, "no memory for the states of ", slots, " sequences of ",
         slot_bytes, " bytes each; use a smaller batch");
  }
  return memory;
}

}  // namespace

StatePool::Impl::Impl(const ModelConfig& config_in, std::int64_t slots_in,
                      std::shared_ptr<Gpu> gpu_in, const StatePoolOptions& options)
    : config(config_in),
      dims(mixer_dims(config_in)),
      slots(slots_in),
      gpu(std::move(gpu_in)),
      positions(static_cast<std::size_t>(slots_in), 0) {
  const std::int64_t heads = config.heads();
  turns_count = round_up(heads * config.mixer.angles());
  ssm_count = round_up(heads * config.mixer.head_dim * config.mixer.state);
  k_count = round_up(config.mixer.rank * heads * config.mixer.state);
  v_count = round_up(heads * config.mixer.head_dim);
  turns_per_slot = config.layers * turns_count;
  values_per_slot = config.layers * (ssm_count + k_count + v_count);
  const std::int64_t slot_bytes = 4 * (turns_per_slot + values_per_slot);
  memory = states_memory(slots, slot_bytes, gpu);
  set_zero(gpu.get(), memory.get(), static_cast<std::size_t>(slots * slot_bytes));
  values = reinterpret_cast<float*>(memory.get());
  turns = reinterpret_cast<std::uint32_t*>(values + slots * values_per_slot);
  ring = RingPool(dims, config.layers, slots, gpu, options);
}

SequenceState::Parts StatePool::Impl::slot_parts(std::int64_t layer, float* slot_values,
                                                 std::uint32_t* slot_turns) const {
  SequenceState::Parts out;
  out.turns = slot_turns + layer * turns_count;
  out.ssm = slot_values + layer * (ssm_count + k_count + v_count);
  out.k = out.ssm + ssm_count;
  out.v = out.k + k_count;
  return out;
}

Mamba3States StatePool::Impl::layer(std::int64_t index) const {
  Mamba3States out;
  out.slots = slots;
  const SequenceState::Parts parts = slot_parts(index, values, turns);
  out.turns = parts.turns;
  out.ssm = parts.ssm;
  out.k = parts.k;
  out.v = parts.v;
  out.turns_stride = turns_per_slot;
  out.ssm_stride = out.k_stride = out.v_stride = values_per_slot;
  out.ring = ring.layer(dims, index);
  return out;
}

void StatePool::Impl::check_slot(std::int32_t slot) const {
  check_input(slot >= 0 && slot < slots, "slot ", slot, " does not exist; this pool has ", slots);
}

void StatePool::Impl::use_parameters(std::vector<Mamba3Params> of_layers,
                                     std::shared_ptr<const void> owner) {
  ring.use_parameters(std::move(of_layers), std::move(owner));
}

void StatePool::Impl::count_token(std::span<const std::int32_t> of_slots) {
  for (const std::int32_t slot : of_slots) ++positions[slot];
  ring.count_token(of_slots);
}

void StatePool::Impl::settle(std::span<const std::int32_t> of_slots) {
  for (const std::int32_t slot : of_slots) {
    if (ring.empty(slot)) continue;
    for (std::int64_t l = 0; l < config.layers; ++l) ring.settle(dims, layer(l), l, slot);
    ring.clear(slot);
  }
}

StatePool::StatePool(const ModelConfig& config, std::int64_t slots, const Context& ctx,
                     const StatePoolOptions& options) {
  constexpr std::int64_t kMostSlots = std::int64_t{1} << 24;
  check_input(slots >= 1 && slots <= kMostSlots, "a state pool of ", slots,
              " slots; expected 1 to ", kMostSlots);
  check_config(config);
  impl_ = std::make_unique<Impl>(config, slots, ctx.gpu(), options);
}
StatePool::~StatePool() = default;
StatePool::StatePool(StatePool&&) noexcept = default;
StatePool& StatePool::operator=(StatePool&&) noexcept = default;

std::int64_t StatePool::slots() const {
  return impl_->slots;
}

std::int64_t StatePool::ring_tokens() const {
  return impl_->ring.tokens();
}

void StatePool::reset(std::int32_t slot) {
  impl_->check_slot(slot);
  set_zero(impl_->gpu.get(), impl_->slot_turns(slot), impl_->slot_turns_bytes());
  set_zero(impl_->gpu.get(), impl_->slot_values(slot), impl_->slot_values_bytes());
  impl_->ring.clear(slot);
  impl_->positions[slot] = 0;
}

void StatePool::fork(std::int32_t from, std::int32_t to) {
  impl_->check_slot(from);
  impl_->check_slot(to);
  if (from == to) return;
  copy_within(impl_->gpu.get(), impl_->slot_turns(to), impl_->slot_turns(from),
              impl_->slot_turns_bytes());
  copy_within(impl_->gpu.get(), impl_->slot_values(to), impl_->slot_values(from),
              impl_->slot_values_bytes());
  impl_->ring.fork(from, to);
  impl_->positions[to] = impl_->positions[from];
}

std::int64_t StatePool::position(std::int32_t slot) const {
  impl_->check_slot(slot);
  return impl_->positions[slot];
}

namespace {

// A slot in the host's memory: where it is, or a copy of what a GPU holds.
class HostSlot {
 public:
  HostSlot(const StatePool::Impl& pool, std::int32_t slot)
      : pool_(pool), slot_(slot), values_(pool.slot_values(slot)), turns_(pool.slot_turns(slot)) {
    if (!pool.gpu) return;
    copied_values_.resize(static_cast<std::size_t>(pool.values_per_slot));
    copied_turns_.resize(static_cast<std::size_t>(pool.turns_per_slot));
    values_ = copied_values_.data();
    turns_ = copied_turns_.data();
  }

  SequenceState::Parts layer(std::int64_t index) const {
    return pool_.slot_parts(index, values_, turns_);
  }
  void read() {
    if (!pool_.gpu) return;
    pool_.gpu->copy_out(values_, pool_.slot_values(slot_), pool_.slot_values_bytes());
    pool_.gpu->copy_out(turns_, pool_.slot_turns(slot_), pool_.slot_turns_bytes());
  }
  void write() {
    if (!pool_.gpu) return;
    pool_.gpu->copy_in(pool_.slot_values(slot_), values_, pool_.slot_values_bytes());
    pool_.gpu->copy_in(pool_.slot_turns(slot_), turns_, pool_.slot_turns_bytes());
  }

 private:
  const StatePool::Impl& pool_;
  std::int32_t slot_;
  float* values_;
  std::uint32_t* turns_;
  std::vector<float> copied_values_;
  std::vector<std::uint32_t> copied_turns_;
};

}  // namespace

// A slot holds h as [h, n, p] and K as the ops want them; the portable state is canonical, h [h, p,
// n].
SequenceState StatePool::export_slot(std::int32_t slot, std::uint64_t model_fingerprint) const {
  impl_->check_slot(slot);
  impl_->settle({&slot, 1});
  const ModelConfig& config = impl_->config;
  const std::int64_t heads = config.heads(), p = config.mixer.head_dim, n = config.mixer.state;
  SequenceState state(config, model_fingerprint);
  state.set_position(impl_->positions[slot]);
  HostSlot host(*impl_, slot);
  host.read();
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const SequenceState::Parts from = host.layer(layer);
    const SequenceState::Parts to = state.parts(layer);
    std::copy_n(from.turns, heads * config.mixer.angles(), to.turns);
    for (std::int64_t h = 0; h < heads; ++h) {
      transpose(from.ssm + h * n * p, n, p, to.ssm + h * n * p);
    }
    std::copy_n(from.k, config.mixer.rank * heads * n, to.k);
    std::copy_n(from.v, heads * p, to.v);
  }
  return state;
}

void StatePool::import_slot(std::int32_t slot, const SequenceState& state) {
  impl_->check_slot(slot);
  const ModelConfig& config = impl_->config;
  check_input(state.fits(config),
              "the state has the sizes of another model, or is empty; expected a state of this "
              "model; make it with the model that reads it");
  const std::int64_t heads = config.heads(), p = config.mixer.head_dim, n = config.mixer.state;
  HostSlot host(*impl_, slot);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const SequenceState::ConstParts from = state.parts(layer);
    const SequenceState::Parts to = host.layer(layer);
    std::copy_n(from.turns, heads * config.mixer.angles(), to.turns);
    for (std::int64_t h = 0; h < heads; ++h) {
      transpose(from.ssm + h * n * p, p, n, to.ssm + h * n * p);
    }
    std::copy_n(from.k, config.mixer.rank * heads * n, to.k);
    std::copy_n(from.v, heads * p, to.v);
  }
  host.write();
  impl_->ring.clear(slot);
  impl_->positions[slot] = state.position();
}

}  // namespace mamba3
