#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "mamba3/error.h"

namespace mamba3 {
namespace {

Schedule schedule(ScheduleKind kind) {
  Schedule s;
  s.kind = kind;
  s.peak = 2;
  s.steps = 100;
  s.warmup_steps = 10;
  return s;
}

TEST(Schedule, WarmsUpInAStraightLine) {
  for (const std::string& name : schedule_names()) {
    const Schedule s = schedule(schedule_kind(name));
    EXPECT_DOUBLE_EQ(learning_rate(s, 0), 0.2) << name;
    EXPECT_DOUBLE_EQ(learning_rate(s, 4), 1.0) << name;
    EXPECT_DOUBLE_EQ(learning_rate(s, 9), 2.0) << name;
    EXPECT_DOUBLE_EQ(learning_rate(s, 10), 2.0) << name;
  }
}

TEST(Schedule, WsdHoldsThenFallsInAStraightLine) {
  Schedule s = schedule(ScheduleKind::kWsd);
  EXPECT_DOUBLE_EQ(learning_rate(s, 60), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(s, 80), 1.0);
  EXPECT_NEAR(learning_rate(s, 99), 2.0 / 40, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(s, 100), 0.0);
  s.last = 0.5;
  EXPECT_DOUBLE_EQ(learning_rate(s, 80), 1.5);
  EXPECT_DOUBLE_EQ(learning_rate(s, 1000), 1.0);
  s.decay_from = 1;
  EXPECT_DOUBLE_EQ(learning_rate(s, 99), 2.0);
  s.decay_from = 0;  // the warm-up comes first
  EXPECT_DOUBLE_EQ(learning_rate(s, 55), 1.5);
}

TEST(Schedule, CosineAndLinear) {
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kLinear), 55), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kLinear), 100), 0.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kCosine), 55), 1.0);
  EXPECT_NEAR(learning_rate(schedule(ScheduleKind::kCosine), 40), 1.5, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kCosine), 100), 0.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kConstant), 1000), 2.0);
}

// Whatever the lengths, the rate is finite, above 0 until the end, and never rises after the
// warm-up.
TEST(Schedule, EveryLengthMakesSense) {
  for (const std::string& name : schedule_names()) {
    for (const std::int64_t steps : {1, 2, 7, 50}) {
      for (const std::int64_t warmup : {std::int64_t{0}, std::int64_t{1}, steps}) {
        Schedule s = schedule(schedule_kind(name));
        s.steps = steps;
        s.warmup_steps = warmup;
        check_schedule(s);
        for (std::int64_t step = 0; step < steps; ++step) {
          const double rate = learning_rate(s, step);
          EXPECT_TRUE(rate > 0 && rate <= s.peak) << name << " " << steps << " " << step;
          if (step > warmup) {
            EXPECT_LE(rate, learning_rate(s, step - 1));
          }
        }
        EXPECT_TRUE(std::isfinite(learning_rate(s, steps)));
      }
    }
  }
}

TEST(Schedule, NamesAndRefusals) {
  for (const std::string& name : schedule_names()) {
    EXPECT_EQ(schedule_name(schedule_kind(name)), name);
  }
  try {
    schedule_kind("cosin");
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("constant, wsd, cosine, linear"), std::string::npos);
  }
  const auto refused = [](auto&& change) {
    Schedule s = schedule(ScheduleKind::kWsd);
    change(s);
    EXPECT_THROW(check_schedule(s), Error);
  };
  refused([](Schedule& s) { s.peak = 0; });
  refused([](Schedule& s) { s.peak = std::nan(""); });
  refused([](Schedule& s) { s.last = 1.5; });
  refused([](Schedule& s) { s.steps = 0; });
  refused([](Schedule& s) { s.warmup_steps = 101; });
  refused([](Schedule& s) { s.decay_from = -0.1; });
}

}  // namespace
}  // namespace mamba3
