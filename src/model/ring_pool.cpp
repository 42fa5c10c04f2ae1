#include "model/ring_pool.h"

#include <numeric>
#include <utility>

#include "core/check.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"

namespace mamba3 {
namespace {

// As fast as longer ones with one rank, faster with four, and half the memory.
constexpr std::int64_t kUsualTokens = 8;

std::int64_t chosen_tokens(const Mamba3Dims& dims, const Gpu* gpu,
                           const StatePoolOptions& options) {
  const std::int64_t wanted = options.ring_tokens;
  const bool fits = gpu != nullptr && mamba3_ring_fits(dims, *gpu);
  if (wanted < 0) return fits ? kUsualTokens : 0;
  check_input(wanted <= kMostRingTokens, "a ring of ", wanted, " tokens; expected at most ",
              kMostRingTokens);
  if (wanted > 0 && !fits) {
    fail(ErrorCode::kUnavailable, "a ring of ", wanted,
         " tokens: this device has none for this model; expected an NVIDIA GPU of compute "
         "capability 9.0 and head dim 64, state size 64 or 128, rank 1, 2 or 4, no out-norm; leave "
         "the ring out");
  }
  return wanted;
}

}  // namespace

RingPool::RingPool(const Mamba3Dims& dims, std::int64_t layers, std::int64_t slots,
                   std::shared_ptr<Gpu> gpu, const StatePoolOptions& options)
    : tokens_(chosen_tokens(dims, gpu.get(), options)),
      stagger_(options.stagger),
      gpu_(std::move(gpu)) {
  if (tokens_ == 0) return;
  layer_bytes_ = ring_bytes(dims, tokens_);
  slot_bytes_ = layers * layer_bytes_;
  const std::int64_t entry_bytes = slots * slot_bytes_;
  const auto numbers = static_cast<std::size_t>(slots) * sizeof(std::uint32_t);
  memory_ = allocate_memory(static_cast<std::size_t>(entry_bytes) + 2 * numbers, gpu_);
  if (!memory_) {
    fail(ErrorCode::kUnavailable, "no memory for the rings of ", slots, " sequences, ", slot_bytes_,
         " bytes each; use a smaller batch or a shorter ring");
  }
  entries_ = memory_.get();
  gpu_cursors_ = reinterpret_cast<std::uint32_t*>(entries_ + entry_bytes);
  auto* ids = reinterpret_cast<std::int32_t*>(gpu_cursors_ + slots);
  slot_ids_ = ids;
  set_zero(gpu_.get(), gpu_cursors_, numbers);
  std::vector<std::int32_t> counting(static_cast<std::size_t>(slots));
  std::iota(counting.begin(), counting.end(), 0);
  gpu_->copy_in(ids, counting.data(), numbers);
  cursors_.resize(static_cast<std::size_t>(slots));
}

Mamba3Ring RingPool::layer(const Mamba3Dims& dims, std::int64_t index) const {
  if (tokens_ == 0) return {};
  Mamba3Ring out = ring_views(dims, tokens_, entries_ + index * layer_bytes_, slot_bytes_);
  out.stagger = stagger_;
  out.cursors = gpu_cursors_;
  return out;
}

void RingPool::use_parameters(std::vector<Mamba3Params> of_layers,
                              std::shared_ptr<const void> owner) {
  parameters_ = std::move(of_layers);
  owner_ = std::move(owner);
}

void RingPool::advance(std::span<const std::int32_t> slots) {
  if (tokens_ == 0) return;
  Mamba3Ring ring;
  ring.tokens = tokens_;
  ring.stagger = stagger_;
  ring.cursors = gpu_cursors_;
  mamba3_ring_advance({ring, slots}, *gpu_);
}

void RingPool::count_token(std::span<const std::int32_t> slots) {
  if (tokens_ == 0) return;
  for (const std::int32_t slot : slots) {
    cursors_[slot] = advanced_cursor(cursors_[slot], static_cast<std::uint32_t>(tokens_), stagger_,
                                     static_cast<std::uint32_t>(slot));
  }
}

bool RingPool::empty(std::int32_t slot) const {
  return tokens_ == 0 || cursors_[slot].count == 0;
}

void RingPool::clear(std::int32_t slot) {
  if (empty(slot)) return;
  cursors_[slot].count = 0;
  Mamba3Ring ring;
  ring.tokens = tokens_;
  ring.cursors = gpu_cursors_;
  mamba3_ring_clear({ring, on_gpu(slot)}, *gpu_);
}

void RingPool::fork(std::int32_t from, std::int32_t to) {
  if (tokens_ == 0) return;
  cursors_[to] = cursors_[from];
  gpu_->copy(gpu_cursors_ + to, gpu_cursors_ + from, sizeof(std::uint32_t));
  if (empty(from)) return;
  gpu_->copy(entries_ + to * slot_bytes_, entries_ + from * slot_bytes_,
             static_cast<std::size_t>(slot_bytes_));
}

void RingPool::settle(const Mamba3Dims& dims, const Mamba3States& states, std::int64_t layer,
                      std::int32_t slot) {
  mamba3_ring_settle({dims, parameters_[layer], states, on_gpu(slot)}, *gpu_);
}

}  // namespace mamba3
