// From a folder to text: loading a checkpoint with its tokenizer, generating, scoring.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mamba3/error.h"
#include "mamba3/model.h"
#include "mamba3/sampling.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

struct LoadOptions {
  std::filesystem::path
      tokenizer;  // empty: tokenizer.json (or tokenizer.model) in the folder, if there is one
  std::optional<ComputeDType> compute;  // empty: bf16 when the matrices are bf16, else fp32
  std::optional<AActivation>
      a_activation;  // empty: what the file records, else heavy-tail (and a log line says so)
  bool strict = false;
  // Sequences that will be decoded at once: kUnavailable, before anything is loaded, when a GPU has
  // no room for them.
  std::int64_t batch = 1;
};

struct Checkpoint {
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when there is none
  std::vector<std::int32_t> eos_ids;
};

// `path`: a folder as Hugging Face lays it out (config.json, weights, tokenizer.json), or a weights
// file in it.
Checkpoint load_checkpoint(const std::filesystem::path& path, const LoadOptions& options,
                           Context& ctx);

enum class FinishReason : std::uint8_t { kLength, kEos, kStop, kInterrupted };
const char* finish_reason_name(FinishReason reason);  // "length", "eos", "stop", "interrupted"

struct GenerateRequest {
  std::vector<std::int32_t> prompt_ids;
  std::int64_t max_tokens = 128;
  SamplingParams sampling;
  std::uint64_t seed = 0;
  std::vector<std::string> stop;  // texts that end a sample and are left out of it
  bool ignore_eos = false;
  std::int64_t samples = 1;  // one prefill, then forks that are decoded together
  // Continue from here, a state of the same model (its fingerprint), instead of from nothing.
  // Random draws begin anew, and penalties count this request's prompt with the state's pending id.
  std::optional<SequenceState> state;
  // How states are kept while decoding, by generate(); a BatchGenerator has BatchOptions::pool.
  StatePoolOptions pool;
};

struct GeneratedSample {
  std::vector<std::int32_t> ids;
  std::vector<float> logprobs;
  std::string text;  // whole UTF-8 characters
  FinishReason reason = FinishReason::kLength;
};

struct GenerateResult {
  std::vector<GeneratedSample> samples;
  SequenceState state;  // of sample 0, after everything that was sampled; its last id is pending
  std::int64_t prefill_tokens = 0;
  double prefill_s = 0;
  std::int64_t decode_tokens = 0;  // sampled; the first of each sample comes with the prompt
  double decode_s = 0;             // of the others
};

struct GenerateHooks {
  // Text of a sample as it becomes certain: whole characters, nothing that a stop text may still
  // swallow.
  std::function<void(std::int64_t sample, const std::string& text)> on_text;
  std::function<void(std::int64_t done_tokens, std::int64_t all_tokens)> on_prefill;
  // Once true, what was produced so far is returned; Error(kInterrupted) where the prompt is still
  // read. Null: never.
  const std::atomic<bool>* interrupted = nullptr;
};

// prompt_ids may be empty only when the state brings a pending id or max_tokens is 0.
GenerateResult generate(const Checkpoint& checkpoint, const GenerateRequest& request,
                        const GenerateHooks& hooks, Context& ctx);

// Many requests at once: what a server is built on. Each sample of a request is a sequence with a
// slot of its own; requests wait for slots, join and leave between steps, and prompts are read
// beside the decoding of others. What a request gets does not depend on the others; on a GPU that
// takes ContextOptions::same_bits.
struct BatchOptions {
  std::int64_t slots = 8;  // sequences at once; each takes the memory of a state
  // Most prompt tokens that one turn reads, which bounds how long decoding waits for it; rounded to
  // the scan's grid of cuts. 0: as many as the device reads at once. Prompts are read in the
  // order of their requests; on a GPU as many long ones side by side as fill it.
  std::int64_t prefill_tokens = 0;
  StatePoolOptions pool = {};  // how states are kept while decoding
};

using Ticket = std::int64_t;

// What a turn brought to one sample of a request.
struct BatchEvent {
  Ticket ticket = 0;
  std::int64_t sample = 0;
  // A piece of the prompt was read: so much of it by now. Of sample 0.
  std::int64_t prompt_done = 0, prompt_tokens = 0;
  std::int32_t id = -1;  // was sampled; -1: none
  float logprob = 0;
  std::string text;  // has become certain: see GenerateHooks::on_text
  // The last event of a sample has one of these.
  std::optional<FinishReason> finished;
  std::optional<Error> error;  // of this request alone; the others go on
  SequenceState state;         // of sample 0 when it ends, where it was asked for
  bool last() const { return finished.has_value() || error.has_value(); }
};

class BatchGenerator {
 public:
  // kUnavailable when there is no memory for the slots. `ctx` must outlive it.
  BatchGenerator(const Checkpoint& checkpoint, const BatchOptions& options, Context& ctx);
  ~BatchGenerator();
  BatchGenerator(BatchGenerator&&) noexcept;
  BatchGenerator& operator=(BatchGenerator&&) noexcept;

  // Puts a request at the end of the queue. Refuses one that means nothing, or that needs more
  // slots than there are. With `keep_state` the last event of sample 0 brings its state.
  Ticket submit(GenerateRequest request, bool keep_state = false);
  // Ends a request with what it has so far, kInterrupted; its last events come with the next turn.
  // One that has ended already is left alone.
  void cancel(Ticket ticket);
  bool idle() const;             // no request, and no event to come
  std::int64_t waiting() const;  // requests that have no slot yet

  // One token for every sequence that is decoded, then a piece of the prompts. Events in order. An
  // error in the middle, memory that runs out for example, ends the sequences that it struck; the
  // generator can be used on.
  std::vector<BatchEvent> turn();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Log-likelihoods. `first_scored` is the index of the first id that is predicted and counted (at
// least 1).
struct ScoreRequest {
  std::vector<std::int32_t> ids;
  std::int64_t first_scored = 1;
};
struct ScoreResult {
  std::vector<float>
      token_logprobs;     // of ids[first_scored ...], natural log, over the true vocabulary
  double logprob = 0;     // their sum
  bool is_greedy = true;  // every one of them was the argmax
};
using ScoreProgress = std::function<void(std::int64_t done_tokens, std::int64_t all_tokens)>;

// Requests are packed into segments; a result does not depend on what it was packed with. Progress
// may throw to stop.
std::vector<ScoreResult> score(const Checkpoint& checkpoint,
                               const std::vector<ScoreRequest>& requests,
                               const ScoreProgress& progress, Context& ctx);

}  // namespace mamba3
