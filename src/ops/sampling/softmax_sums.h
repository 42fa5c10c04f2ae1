// Passes over a row of logits: what sampling and scoring need of a softmax without writing it out.
#pragma once

#include <cstdint>
#include <span>

namespace mamba3 {

struct LargestLogit {
  std::int32_t id = 0;  // the first of equals
  float logit = 0;
};

// Refuses a row without logits, with NaN or +infinity in it, or with nothing but -infinity.
LargestLogit largest_logit(std::span<const float> logits);

// Sum of exp((logit - largest) * scale), scale > 0.
double sum_of_exp(std::span<const float> logits, float largest, double scale);

}  // namespace mamba3
