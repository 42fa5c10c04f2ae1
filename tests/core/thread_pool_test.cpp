#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

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

}  // namespace
}  // namespace mamba3
