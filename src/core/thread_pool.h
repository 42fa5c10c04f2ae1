// The one thread pool of a Context. Everything that runs in parallel, GEMM tiles included, runs on
// it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace mamba3 {

class ThreadPool {
 public:
  // The calling thread is one of them. kUnavailable where the system does not give so many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, worker) once for each task in [0, tasks), worker in [0, threads()). Tasks are
  // handed out in order as workers become free, so results must not depend on which worker runs a
  // task. Returns when all are done; rethrows the first exception. Not reentrant: a body must not
  // call run().
  template <class Body>
  void run(std::int64_t tasks, Body&& body) {
    using Fn = std::remove_reference_t<Body>;
    run_erased(tasks, &body, [](void* fn, std::int64_t task, int worker) {
      (*static_cast<Fn*>(fn))(task, worker);
    });
  }

 private:
  void end_workers();
  using Call = void (*)(void* body, std::int64_t task, int worker);

  void run_erased(std::int64_t tasks, const void* body, Call call);
  void work(int worker);
  bool take_task(int worker);  // false: there was none to take
  void wake_sleepers();

  // Tasks that nobody has taken yet, handed out from the highest count down. Taking one is a step
  // down by compare-and-swap: whoever succeeds holds an unfinished task, so the job's fields below
  // stay as they are until it is done. A worker that comes late finds nothing and delays nobody.
  std::atomic<std::int64_t> untaken_{0};
  std::atomic<std::int64_t> unfinished_{0};
  void* body_ = nullptr;
  Call call_ = nullptr;
  std::int64_t tasks_ = 0;

  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr error_;  // guarded by mutex_
  std::vector<std::thread> workers_;
};

}  // namespace mamba3
