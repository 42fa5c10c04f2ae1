// Where the time of a pass goes, op by op: ops open an OpTimer at entry; nothing is measured unless
// a Context was given an OpTimes to fill.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "mamba3/context.h"

namespace mamba3 {

struct OpTimes {
  std::map<std::string, double> seconds;  // by op name
};

// A GPU works on after an op has returned.
void wait_for_device(Context& ctx) noexcept;

class OpTimer {
 public:
  OpTimer(Context& ctx, const char* op) : ctx_(ctx), times_(ctx.op_times()), op_(op) {
    if (times_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~OpTimer() {
    if (times_ == nullptr) return;
    wait_for_device(ctx_);
    const auto passed = std::chrono::steady_clock::now() - start_;
    times_->seconds[op_] += std::chrono::duration<double>(passed).count();
  }
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;

 private:
  Context& ctx_;
  OpTimes* times_;
  const char* op_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace mamba3
