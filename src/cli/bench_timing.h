// Timing for benchmarks: on a GPU a call returns before its work is done.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mamba3/context.h"

namespace mamba3::cli {

// The median; `times` must not be empty.
double median(std::vector<double> times);

// Seconds until the device has done what `body` asks for. Waits before it starts as well.
double time_once(Context& ctx, const std::function<void()>& body);

// Seconds of one call: the median of `repeat` bursts after a warm-up. On a CPU a burst is one call.
// On a GPU it is as many as make starting and waiting for them not count; `call` rises from 0
// through all of them, so that a body can take other memory each time. Where calls differ, every
// `cycle` of them being alike, a burst is whole cycles.
double time_calls(Context& ctx, std::int64_t repeat,
                  const std::function<void(std::int64_t call)>& body, std::int64_t cycle = 1);

}  // namespace mamba3::cli
