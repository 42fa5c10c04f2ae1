// A Mamba-3 language model in memory: weights, and the two things that can be done with them,
// reading many tokens (prefill) and reading one token of many sequences (step). Both work on the
// slots of a StatePool.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/sampling.h"
#include "mamba3/state.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// kF32: exact fp32 arithmetic on the stored weights. kBf16: inputs of every linear rounded to bf16,
// fp32 sums.
enum class ComputeDType : std::uint8_t { kF32, kBf16 };

struct ModelOptions {
  ComputeDType compute = ComputeDType::kF32;
  // Refuse weights that hold NaN or infinity (otherwise they are logged as a warning).
  bool strict = false;
};

// How steps on a GPU write states. Up to `ring_tokens` of a sequence's newest tokens wait beside
// its state, and only when they are so many is the state rewritten: the other steps read it, which
// halves what a step moves. It changes no result beyond rounding. A ring takes memory: per layer
// and slot about heads * (4 head_dim + 32) bytes a token.
struct StatePoolOptions {
  // 1 rewrites states at every token. 0: no ring. Negative: 8 where the GPU and the shape have it
  // (compute capability 9.0; head dim 64, state size 64 or 128, rank 1, 2 or 4, no out-norm), else
  // 0. More than 16, or more than 0 where there is none, is refused.
  std::int64_t ring_tokens = -1;
  // A slot's first period is shorter by slot modulo ring_tokens, so that sequences that started
  // together rewrite their states at different tokens and every step takes as long. A sequence's
  // bits then depend on its slot.
  bool stagger = false;
};

// The states of many sequences. A slot is in use by one sequence at a time; a fresh or reset slot
// is all zeros.
class StatePool {
 public:
  struct Impl;  // model/state_pool.h

  // In the memory that the ops of `ctx` use.
  StatePool(const ModelConfig& config, std::int64_t slots, const Context& ctx,
            const StatePoolOptions& options = {});
  ~StatePool();
  StatePool(StatePool&&) noexcept;
  StatePool& operator=(StatePool&&) noexcept;

  std::int64_t slots() const;
  std::int64_t ring_tokens() const;  // 0: no ring
  void reset(std::int32_t slot);
  void fork(std::int32_t from, std::int32_t to);
  std::int64_t position(std::int32_t slot) const;  // tokens read

  // Between a slot and a portable state; both ways lossless.
  SequenceState export_slot(std::int32_t slot, std::uint64_t model_fingerprint) const;
  void import_slot(std::int32_t slot, const SequenceState& state);

 private:
  friend class Model;
  friend class DecodeBatch;
  std::unique_ptr<Impl> impl_;
};

// Rows of logits as they become ready, each once, in any order: row i of logits [rows, padded
// vocabulary] is for logit_tokens[which[i]].
using LogitsCallback =
    std::function<void(std::span<const std::int64_t> which, TensorView<const float, 2> logits)>;

struct SegmentRule;  // model/segments.h

struct PrefillArgs {
  std::span<const std::int32_t> ids;         // [t], sequences one after the other
  std::span<const std::int64_t> cu_seqlens;  // [q + 1]
  std::span<const std::int32_t> slots;       // [q], all different
  // At most one of the two kinds of output; none: the tokens are only read.
  TensorView<float, 2>
      last_logits;  // [q, padded vocabulary]; an empty sequence leaves its row alone
  std::span<const std::int64_t> logit_tokens;  // indices into ids whose logits are wanted, rising
  LogitsCallback on_logits;
  std::function<void(std::int64_t done_tokens)> progress;  // after each segment; may throw to stop
  const SegmentRule* segments = nullptr;  // how tokens are cut; null: as suits the device
};

struct SampledStep;  // model/sampled_step.h

class Model {
 public:
  // `tensors` are named as tensor_specs() says and stay where they are: large matrices are used in
  // place, so `owner` is kept for as long as the model lives. All missing, extra and misshapen
  // tensors are reported at once.
  static std::shared_ptr<const Model> create(ModelConfig config,
                                             const std::map<std::string, TensorRef>& tensors,
                                             std::shared_ptr<const void> owner,
                                             const ModelOptions& options, Context& ctx);
  // Random weights as the authors initialise, for benchmarks and tests.
  static std::shared_ptr<const Model> random(ModelConfig config, DType dtype, std::uint64_t seed,
                                             const ModelOptions& options, Context& ctx);
  ~Model();

  const ModelConfig& config() const;
  ComputeDType compute() const;
  std::uint64_t fingerprint() const;  // of config and weights: what a state file is checked against
  std::int64_t weights_bytes() const;  // read once per decoded token

  // Reads packed tokens in segments, so memory does not grow with their number. A segment holds
  // pieces of several sequences, as many as the device needs; no bit depends on how they are cut
  // (on a Hopper GPU in bf16 with ContextOptions::same_bits).
  void prefill(const PrefillArgs& args, StatePool& states, Context& ctx) const;
  // Reads one token of each slot. logits [b, padded vocabulary].
  void step(std::span<const std::int32_t> ids, std::span<const std::int32_t> slots,
            StatePool& states, TensorView<float, 2> logits, Context& ctx) const;

 private:
  friend class DecodeBatch;
  Model();
  // A step that stays in the Context's memory, sampling included.
  void step_and_sample(const SampledStep& step, StatePool& states, Context& ctx) const;

  struct Impl;
  std::shared_ptr<Impl> impl_;  // pools keep it for what their rings need of its weights
};

// One sequence in a decoding step: `id` is read, then the next one is sampled from what the model
// says.
struct DecodeRow {
  std::int32_t slot = 0;
  std::int32_t id = 0;
  SamplingParams sampling;  // without penalties: these need logits in the host's memory
  std::uint64_t seed = 0, stream = 0, position = 0;  // of the draw
  bool operator==(const DecodeRow&) const = default;
};

// Decodes many sequences of one StatePool, a token each at a time. On a GPU a step is one recorded
// graph: nothing is uploaded as long as each row goes on with the id that it was given. Model,
// states and Context must outlive it.
class DecodeBatch {
 public:
  // kUnavailable when there is no memory for so many rows.
  DecodeBatch(const Model& model, StatePool& states, std::int64_t most_rows, Context& ctx);
  ~DecodeBatch();
  DecodeBatch(DecodeBatch&&) noexcept;
  DecodeBatch& operator=(DecodeBatch&&) noexcept;

  // At most most_rows rows, all of different slots; any other rows, in any number, may come next
  // time. The result, one for each row, is there until the next call. A row whose logits are no
  // distribution says so and does not disturb the others.
  std::span<const SampledToken> step(std::span<const DecodeRow> rows);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mamba3
