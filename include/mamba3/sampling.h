// How the next token is chosen from a row of logits.
#pragma once

#include <cstdint>
#include <span>

namespace mamba3 {

// Filters apply in the order of the fields: penalties, temperature, top-k, top-p, min-p.
struct SamplingParams {
  float repeat_penalty =
      1.0f;  // > 1 divides positive and multiplies negative logits of seen tokens
  float presence_penalty = 0.0f;   // subtracted once from every seen token
  float frequency_penalty = 0.0f;  // subtracted for every time a token was seen
  float temperature = 0.8f;        // 0: greedy, the first of equal logits
  std::int32_t top_k = 40;         // 0: off
  float top_p = 0.95f;             // 1: off
  float min_p = 0.05f;             // 0: off
  bool operator==(const SamplingParams&) const = default;
};

// Counter-based random numbers: the draw for (seed, stream, position) is the same on every machine,
// whatever was drawn before, so a sequence's samples do not depend on its neighbours.
double uniform_draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t position);  // in [0, 1)

struct Sample {
  std::int32_t id = 0;
  float logprob = 0;  // of the model's own distribution (before penalties, temperature and
                      // filters), natural log
};

// Chooses from logits [v] (the true vocabulary only). `seen` are the ids that penalties count.
// `draw` in [0, 1). Refuses NaN logits and parameters out of range.
Sample sample_token(std::span<const float> logits, std::span<const std::int32_t> seen,
                    const SamplingParams& params, double draw);

// What became of one row of many that were sampled together.
enum class SampleStatus : std::int32_t {
  kOk = 0,
  kNotFinite = 1,  // a logit is NaN or +infinity
  kNoToken = 2,    // all logits are -infinity
};
struct SampledToken {
  std::int32_t id = -1;  // -1: none
  float logprob = 0;
  SampleStatus status = SampleStatus::kOk;
};
// Why a row has no token: what was found; what was expected; what to do.
const char* sample_status_text(SampleStatus status);

// Refuses parameters out of range, naming the value.
void check_sampling(const SamplingParams& params);
bool has_penalty(const SamplingParams& params);

// log softmax(logits)[id], in double inside.
double token_logprob(std::span<const float> logits, std::int32_t id);

}  // namespace mamba3
