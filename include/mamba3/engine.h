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
  std::int64_t samples = 1;            // one prefill, then forks that are decoded together
  std::optional<SequenceState> state;  // continue from here instead of from nothing
  StatePoolOptions pool;               // how states are kept while decoding
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
  std::int64_t decode_tokens = 0;
  double decode_s = 0;
};

struct GenerateHooks {
  // Text of a sample as it becomes certain: whole characters, nothing that a stop text may still
  // swallow.
  std::function<void(std::int64_t sample, const std::string& text)> on_text;
  std::function<void(std::int64_t done_tokens, std::int64_t all_tokens)> on_prefill;
  const std::atomic<bool>* interrupted =
      nullptr;  // once true, what was produced so far is returned
};

// prompt_ids may be empty only when the state brings a pending id or max_tokens is 0.
GenerateResult generate(const Checkpoint& checkpoint, const GenerateRequest& request,
                        const GenerateHooks& hooks, Context& ctx);

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
