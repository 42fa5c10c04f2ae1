#include "core/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <numeric>
#include <stdexcept>
#include "mamba3/error.h"

namespace mamba3 {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int tasks : {0, 1, 2, 7, 1000}) {
      std::vector<int> hits(tasks);
      pool.run(tasks, [&](std::int64_t task, int worker) {
        EXPECT_LT(worker, threads);
        ++hits[task];
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), 0), tasks);
    }
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    EXPECT_THROW(pool.run(100,
                          [](std::int64_t task, int) {
                            if (task == 5) throw std::runtime_error("five");
                          }),
                 std::runtime_error);
    std::atomic<int> count{0};
    pool.run(10, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count.load(), 10);
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
// In a process of its own; sanitizers need more addresses than that.
TEST(ThreadPool, ThreadsThatTheSystemDoesNotGiveAreAnError) {
  const pid_t process = ::fork();
  if (process == 0) {
    const rlimit limit{rlim_t{2} << 30, RLIM_INFINITY};
    ::setrlimit(RLIMIT_AS, &limit);
    try {
      const ThreadPool pool(4096);
    } catch (const Error& error) {
      ::_exit(static_cast<int>(error.code()));
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(process, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ErrorCode::kUnavailable));
}
#endif

}  // namespace
}  // namespace mamba3
