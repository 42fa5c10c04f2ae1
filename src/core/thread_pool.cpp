#include "core/thread_pool.h"

#include "core/check.h"

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
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::exception& error) {
    const std::size_t started = workers_.size() + 1;
    end_workers();
    fail(ErrorCode::kUnavailable, "the system gave ", started, " of ", threads, " threads (",
         error.what(), "); expected as many as asked for; use fewer, or lift the limits");
  }
}

ThreadPool::~ThreadPool() {
  end_workers();
}

void ThreadPool::end_workers() {
  stop_.store(true);
  wake_sleepers();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run_erased(std::int64_t tasks, const void* body, Call call) {
  if (tasks <= 0) return;
  body_ = const_cast<void*>(body);
  call_ = call;
  tasks_ = tasks;
  unfinished_.store(tasks, std::memory_order_relaxed);
  // Publishes the fields above to whoever takes a task. Sequentially consistent, as is the count of
  // sleepers: either this thread sees a sleeper, or the one about to sleep sees the tasks.
  untaken_.store(tasks, std::memory_order_seq_cst);
  if (tasks > 1 && sleepers_.load(std::memory_order_seq_cst) > 0) wake_sleepers();
  while (take_task(0)) {
  }
  // Pairs with the release in take_task(): the results of all tasks are visible once this reads 0.
  for (int polls = 0; unfinished_.load(std::memory_order_acquire) > 0; ++polls) {
    if (polls < kPollsBeforeSleep) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    std::swap(error, error_);
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::wake_sleepers() {
  { const std::lock_guard lock(mutex_); }  // a worker is either before its last look or asleep
  wake_.notify_all();
}

void ThreadPool::work(int worker) {
  const auto something_to_do = [this] {
    return stop_.load() || untaken_.load(std::memory_order_seq_cst) > 0;
  };
  while (true) {
    for (int polls = 0; polls < kPollsBeforeSleep && !something_to_do(); ++polls) relax();
    if (!something_to_do()) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, something_to_do);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    if (stop_.load()) return;
    while (take_task(worker)) {
    }
  }
}

bool ThreadPool::take_task(int worker) {
  std::int64_t left = untaken_.load(std::memory_order_relaxed);
  do {
    if (left <= 0) return false;
  } while (!untaken_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                           std::memory_order_relaxed));
  try {
    call_(body_, tasks_ - left, worker);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
  unfinished_.fetch_sub(1, std::memory_order_release);
  return true;
}

}  // namespace mamba3
