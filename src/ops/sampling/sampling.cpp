#include "mamba3/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "ops/sampling/softmax_sums.h"

namespace mamba3 {
namespace {

struct Candidate {
  std::int32_t id = 0;
  float logit = 0;
  double weight = 0;  // its probability up to a common factor; the most likely has 1
};

// The more likely first; of equals the lower id.
bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

std::vector<float> penalised(std::span<const float> logits, std::span<const std::int32_t> seen,
                             const SamplingParams& params) {
  const auto v = static_cast<std::int64_t>(logits.size());
  std::vector<std::int32_t> counts(logits.size());
  for (const std::int32_t id : seen) {
    check_input(id >= 0 && id < v, "penalties: a seen id is ", id, "; expected 0 to ", v - 1);
    ++counts[id];
  }
  std::vector<float> out(logits.begin(), logits.end());
  for (std::int64_t id = 0; id < v; ++id) {
    if (counts[id] == 0) continue;
    float& logit = out[id];
    logit = logit > 0 ? logit / params.repeat_penalty : logit * params.repeat_penalty;
    logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(counts[id]);
  }
  return out;
}

// The k most likely, in no order: one pass, which rarely has to touch the heap.
std::vector<Candidate> most_likely(std::span<const float> logits, std::size_t k) {
  std::vector<Candidate> heap;  // the least likely of the kept at its front
  heap.reserve(k);
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const Candidate next{static_cast<std::int32_t>(id), logits[id], 0};
    if (heap.size() < k) {
      heap.push_back(next);
      std::push_heap(heap.begin(), heap.end(), before);
    } else if (next.logit > heap.front().logit) {
      std::pop_heap(heap.begin(), heap.end(), before);
      heap.back() = next;
      std::push_heap(heap.begin(), heap.end(), before);
    }
  }
  return heap;
}

// Those of at least `lowest`.
std::vector<Candidate> likely(std::span<const float> logits, double lowest) {
  std::vector<Candidate> out;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= lowest) out.push_back({static_cast<std::int32_t>(id), logits[id], 0});
  }
  return out;
}

void weigh(std::vector<Candidate>& candidates, float largest, double temperature) {
  for (Candidate& c : candidates) {
    c.weight = std::exp((static_cast<double>(c.logit) - largest) / temperature);
  }
}

double total_weight(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  return total;
}

// Keeps the fewest most likely candidates that together reach `mass`.
void keep_nucleus(std::vector<Candidate>& candidates, double mass) {
  std::sort(candidates.begin(), candidates.end(), before);
  double sum = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && sum < mass) sum += candidates[kept++].weight;
  candidates.resize(std::max<std::size_t>(kept, 1));
}

// Top-k, top-p and min-p. Every candidate that a later filter is sure to drop may be left out from
// the start, which keeps the sort of top-p short.
std::vector<Candidate> filtered(std::span<const float> logits, float largest,
                                const SamplingParams& params) {
  const double temperature = params.temperature;
  const bool has_top_k = params.top_k > 0 && static_cast<std::size_t>(params.top_k) < logits.size();
  const double log_min_p = params.min_p > 0 ? std::log(static_cast<double>(params.min_p))
                                            : -std::numeric_limits<double>::infinity();
  std::vector<Candidate> kept;
  double total = 0;
  if (has_top_k) {
    kept = most_likely(logits, static_cast<std::size_t>(params.top_k));
    weigh(kept, largest, temperature);
    total = total_weight(kept);
  } else {
    double log_lowest = log_min_p;
    if (params.top_p < 1) {
      // All tokens below (1 - p) / v together do not reach 1 - p, so none is in the nucleus.
      total = sum_of_exp(logits, largest, 1 / temperature);
      log_lowest = std::max(log_lowest, std::log((1 - static_cast<double>(params.top_p)) * total /
                                                 static_cast<double>(logits.size())));
    }
    kept = likely(logits, largest + temperature * std::min(log_lowest, 0.0));
    weigh(kept, largest, temperature);
  }
  if (params.top_p < 1) keep_nucleus(kept, params.top_p * total);
  std::erase_if(kept, [&](const Candidate& c) { return c.weight < params.min_p; });
  return kept;
}

// Walks the candidates by their ids, so that the choice depends on the kept set alone.
std::int32_t pick(std::vector<Candidate>& candidates, double draw) {
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const double target = draw * total_weight(candidates);
  double sum = 0;
  std::int32_t last = 0;
  for (const Candidate& c : candidates) {
    if (c.weight == 0) continue;
    sum += c.weight;
    last = c.id;
    if (sum > target) break;
  }
  return last;  // rounding may leave the sum of all at the target: then the last one
}

double logprob(std::span<const float> logits, std::int32_t id, float largest) {
  return (static_cast<double>(logits[id]) - largest) - std::log(sum_of_exp(logits, largest, 1));
}

}  // namespace

void check_sampling(const SamplingParams& params) {
  check_input(std::isfinite(params.repeat_penalty) && params.repeat_penalty > 0,
              "repeat penalty is ", params.repeat_penalty, "; expected a number above 0; 1 is off");
  check_input(std::isfinite(params.presence_penalty), "presence penalty is ",
              params.presence_penalty, "; expected a finite number; 0 is off");
  check_input(std::isfinite(params.frequency_penalty), "frequency penalty is ",
              params.frequency_penalty, "; expected a finite number; 0 is off");
  check_input(std::isfinite(params.temperature) && params.temperature >= 0, "temperature is ",
              params.temperature, "; expected a finite number of at least 0; 0 is greedy");
  check_input(params.top_k >= 0, "top-k is ", params.top_k, "; expected at least 0; 0 is off");
  check_input(params.top_p > 0 && params.top_p <= 1, "top-p is ", params.top_p,
              "; expected a number above 0 and up to 1; 1 is off");
  check_input(params.min_p >= 0 && params.min_p <= 1, "min-p is ", params.min_p,
              "; expected a number from 0 to 1; 0 is off");
}

bool has_penalty(const SamplingParams& params) {
  return params.repeat_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

const char* sample_status_text(SampleStatus status) {
  switch (status) {
    case SampleStatus::kOk:
      return "a token was chosen";
    case SampleStatus::kNotFinite:
      return "the logits hold NaN or infinity; expected finite numbers or -infinity; check the "
             "model's weights with inspect";
    case SampleStatus::kNoToken:
      return "all logits are -infinity; expected at least one token that is possible; check the "
             "model's weights with inspect";
  }
  return "?";
}

Sample sample_token(std::span<const float> logits, std::span<const std::int32_t> seen,
                    const SamplingParams& params, double draw) {
  check_sampling(params);
  check_input(draw >= 0 && draw < 1, "sampling: the draw is ", draw,
              "; expected a number from 0 to below 1");
  check_input(!logits.empty(), "sampling: there are no logits; expected at least one");
  const LargestLogit raw = largest_logit(logits);
  std::vector<float> changed;
  std::span<const float> row = logits;
  LargestLogit top = raw;
  if (has_penalty(params) && !seen.empty()) {
    changed = penalised(logits, seen, params);
    row = changed;
    top = largest_logit(row);
  }
  std::int32_t id = top.id;
  if (params.temperature > 0) {
    std::vector<Candidate> candidates = filtered(row, top.logit, params);
    id = pick(candidates, draw);
  }
  return {id, static_cast<float>(logprob(logits, id, raw.logit))};
}

double token_logprob(std::span<const float> logits, std::int32_t id) {
  const float largest = largest_logit(logits).logit;
  check_input(id >= 0 && id < static_cast<std::int64_t>(logits.size()), "token_logprob: the id is ",
              id, "; expected 0 to ", logits.size() - 1);
  return logprob(logits, id, largest);
}

}  // namespace mamba3
