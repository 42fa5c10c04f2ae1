#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {
namespace {

struct Named {
  const char* name;
  ScheduleKind kind;
};
constexpr Named kKinds[] = {{"constant", ScheduleKind::kConstant},
                            {"wsd", ScheduleKind::kWsd},
                            {"cosine", ScheduleKind::kCosine},
                            {"linear", ScheduleKind::kLinear}};

// How far the fall has come, 0 to 1.
double fallen(const Schedule& s, std::int64_t step) {
  const auto warm = static_cast<double>(s.warmup_steps), end = static_cast<double>(s.steps);
  const double begin = s.kind == ScheduleKind::kWsd ? std::max(warm, s.decay_from * end) : warm;
  const auto at = static_cast<double>(step);
  if (at >= end) return 1;
  return at <= begin ? 0 : (at - begin) / (end - begin);
}

}  // namespace

const char* schedule_name(ScheduleKind kind) {
  const auto* found = std::find_if(std::begin(kKinds), std::end(kKinds),
                                   [kind](const Named& named) { return named.kind == kind; });
  return found == std::end(kKinds) ? "" : found->name;
}

ScheduleKind schedule_kind(const std::string& name) {
  std::string known;
  for (const Named& named : kKinds) {
    if (name == named.name) return named.kind;
    known += (known.empty() ? "" : ", ") + std::string(named.name);
  }
  fail(ErrorCode::kBadInput, "there is no schedule ", quote(name), "; expected one of ", known);
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Named& named : kKinds) names.emplace_back(named.name);
  return names;
}

void check_schedule(const Schedule& s) {
  check_input(std::isfinite(s.peak) && s.peak > 0, "the learning rate is ", s.peak,
              "; expected a finite number above 0");
  check_input(s.last >= 0 && s.last <= 1, "the learning rate is to fall to ", s.last,
              " of its peak; expected 0 to 1");
  check_input(s.steps >= 1, "the schedule has ", s.steps, " steps; expected at least 1");
  check_input(s.warmup_steps >= 0 && s.warmup_steps <= s.steps, "the warm-up takes ",
              s.warmup_steps, " of ", s.steps,
              " steps; expected 0 to all of them; choose a smaller --warmup, or more --steps");
  check_input(s.decay_from >= 0 && s.decay_from <= 1, "the learning rate is to fall from ",
              s.decay_from, " of the run on; expected 0 to 1");
}

double learning_rate(const Schedule& s, std::int64_t step) {
  if (step < s.warmup_steps) {
    return s.peak * static_cast<double>(step + 1) / static_cast<double>(s.warmup_steps);
  }
  if (s.kind == ScheduleKind::kConstant) return s.peak;
  double left = 1 - fallen(s, step);
  if (s.kind == ScheduleKind::kCosine) left = (1 - std::cos(std::numbers::pi * left)) / 2;
  return s.peak * (s.last + (1 - s.last) * left);
}

}  // namespace mamba3
