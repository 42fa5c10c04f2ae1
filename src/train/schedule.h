// The learning rate of each step. A pure function: resuming needs nothing but the step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba3 {

// After the warm-up: the peak for ever; the peak, then a straight line down (warm-up, stable,
// decay); half a cosine; a straight line.
enum class ScheduleKind : std::uint8_t { kConstant, kWsd, kCosine, kLinear };

const char* schedule_name(ScheduleKind kind);  // "constant", "wsd", "cosine", "linear"
// An unknown name is refused with the known ones.
ScheduleKind schedule_kind(const std::string& name);
std::vector<std::string> schedule_names();

struct Schedule {
  ScheduleKind kind = ScheduleKind::kWsd;
  double peak = 3e-3;
  double last = 0;                // what the rate falls to, as a fraction of the peak
  std::int64_t steps = 1;         // of the whole run; later ones stay at the end of the fall
  std::int64_t warmup_steps = 0;  // a straight line up, whose first step is not 0
  double decay_from = 0.6;        // kWsd: where the fall begins, as a fraction of `steps`
};

// Refuses a schedule that means nothing, naming the field.
void check_schedule(const Schedule& schedule);

// Of the update that follows `step` others. The fall reaches its end with the step after the last:
// no step is wasted on a rate of 0.
double learning_rate(const Schedule& schedule, std::int64_t step);

}  // namespace mamba3
