#include "cli/bench_timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cli/terminal.h"
#include "core/gpu.h"

namespace mamba3::cli {
namespace {

constexpr double kBurstSeconds = 0.02;
constexpr double kMostCalls = 500;

void wait(Context& ctx) {
  if (ctx.gpu()) ctx.gpu()->synchronize();
}

}  // namespace

double median(std::vector<double> times) {
  const std::size_t middle = times.size() / 2;
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(middle), times.end());
  return times[middle];
}

double time_once(Context& ctx, const std::function<void()>& body) {
  check_interrupt();
  wait(ctx);
  const auto start = std::chrono::steady_clock::now();
  body();
  wait(ctx);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double time_calls(Context& ctx, std::int64_t repeat,
                  const std::function<void(std::int64_t call)>& body, std::int64_t cycle) {
  std::int64_t call = 0;
  const auto burst = [&](std::int64_t calls) {
    const double seconds = time_once(ctx, [&] {
      for (std::int64_t i = 0; i < calls; ++i) body(call++);
    });
    return seconds / static_cast<double>(calls);
  };
  burst(cycle);  // loads kernels, chooses algorithms, grows the workspace
  std::int64_t calls = cycle;
  if (ctx.gpu()) {
    const double once = burst(3 * cycle);
    calls = static_cast<std::int64_t>(std::clamp(std::ceil(kBurstSeconds / once), 3.0, kMostCalls));
    calls = (calls + cycle - 1) / cycle * cycle;
  }
  std::vector<double> seconds;
  for (std::int64_t i = 0; i < repeat; ++i) seconds.push_back(burst(calls));
  return median(seconds);
}

}  // namespace mamba3::cli
