#include "core/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mamba3 {
namespace {

// Ops follow each other within microseconds; a worker that sleeps between them costs more than it
// saves. After this many polls (about 50 us) the gap is a pause in the work and the worker lets its
// processor go.
constexpr int kPollsBeforeSleep = 4000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(std::int64_t tasks, const void* body, Call call) {
  if (tasks <= 0) return;
  body_ = const_cast<void*>(body);
  call_ = call;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  const bool alone = tasks == 1 || workers_.empty();
  if (!alone) {
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  take_tasks(0);
  if (!alone) {
    // Pairs with the release in work(): the workers' results are visible once busy_ reads 0.
    for (int polls = 0; busy_.load(std::memory_order_acquire) > 0; ++polls) {
      if (polls < kPollsBeforeSleep) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    std::swap(error, error_);
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::work(int worker) {
  std::uint64_t seen = 0;
  while (true) {
    for (int polls = 0; polls < kPollsBeforeSleep; ++polls) {
      if (generation_.load(std::memory_order_acquire) != seen) break;
      relax();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    take_tasks(worker);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::take_tasks(int worker) {
  try {
    while (true) {
      const std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) return;
      call_(body_, task, worker);
    }
  } catch (...) {
    next_.store(tasks_, std::memory_order_relaxed);  // the others need not go on
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

}  // namespace mamba3
