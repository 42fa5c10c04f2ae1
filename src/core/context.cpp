#include "mamba3/context.h"

#include <sched.h>

#include <thread>
#include <utility>

#include "core/arena.h"
#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"

namespace mamba3 {
namespace {

constexpr int kMostThreads = 1024;

// Containers and taskset narrow the set of processors; hardware_concurrency would not see it
// everywhere.
int available_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

}  // namespace

struct Context::Impl {
  explicit Impl(ContextOptions options_in)
      : options(std::move(options_in)),
        pool(options.threads > 0 ? options.threads : available_processors()),
        gpu(options.device.kind == DeviceKind::kCuda ? Gpu::open(options.device.index) : nullptr),
        workspace(gpu) {}
  ContextOptions options;
  ThreadPool pool;
  std::shared_ptr<Gpu> gpu;
  Arena workspace;
  OpTimes* op_times = nullptr;
};

Context::Context(ContextOptions options) {
  check_input(options.threads >= 0 && options.threads <= kMostThreads, "threads is ",
              options.threads, "; expected 0 (one per processor) to ", kMostThreads);
  impl_ = std::make_unique<Impl>(std::move(options));
}
Context::~Context() = default;
Context::Context(Context&&) noexcept = default;
Context& Context::operator=(Context&&) noexcept = default;

int Context::threads() const {
  return impl_->pool.threads();
}
ThreadPool& Context::pool() {
  return impl_->pool;
}
Arena& Context::workspace() {
  return impl_->workspace;
}
const std::shared_ptr<Gpu>& Context::gpu() const {
  return impl_->gpu;
}
std::uint64_t Context::seed() const {
  return impl_->options.seed;
}
bool Context::same_bits() const {
  return impl_->options.same_bits;
}

void wait_for_device(Context& ctx) noexcept {
  try {
    if (ctx.gpu()) ctx.gpu()->synchronize();
  } catch (const Error&) {
    // The op that follows meets the same error and reports it.
  }
}

void Context::set_op_times(OpTimes* times) {
  impl_->op_times = times;
}
OpTimes* Context::op_times() const {
  return impl_->op_times;
}

void Context::log(LogLevel level, const std::string& message) const {
  if (impl_->options.log) impl_->options.log(level, message);
}

}  // namespace mamba3
