#include "core/host_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <limits>

#include "../io/file_test_util.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

// A system as its files tell it.
class HostMemory : public ::testing::Test {
 protected:
  void put(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    write_text(root_ / name, text);
  }
  std::int64_t available() const { return available_memory_bytes(root_.path()); }
  TempFolder root_;
};

TEST_F(HostMemory, OfASystemWithoutGroups) {
  EXPECT_EQ(available(), kUnlimited);
  put("proc/meminfo",
      "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   7000 kB\nCached: 5 kB\n");
  EXPECT_EQ(available(), 7000 * 1024);
  EXPECT_GT(available_memory_bytes(), 0);
  EXPECT_LT(available_memory_bytes(), kUnlimited);
}

TEST_F(HostMemory, OfControlGroups) {
  put("proc/meminfo", "MemAvailable: 9000000 kB\n");
  put("proc/self/cgroup", "0::/outer/inner\n");
  const std::string outer = "sys/fs/cgroup/outer/", inner = outer + "inner/";
  put(inner + "memory.max", "max\n");
  put(inner + "memory.current", "5000\n");
  EXPECT_EQ(available(), 9000000LL * 1024);
  put(inner + "memory.max", "9000\n");
  EXPECT_EQ(available(), 4000);
  put(inner + "memory.stat", "anon 4000\nfile 1000\ninactive_file 700\nactive_file 300\n");
  EXPECT_EQ(available(), 4700);
  put(outer + "memory.max", "8000\n");
  put(outer + "memory.current", "6000\n");
  EXPECT_EQ(available(), 2000);
  put("sys/fs/cgroup/memory.max", "7000\n");
  put("sys/fs/cgroup/memory.current", "9000\n");
  EXPECT_EQ(available(), 0);
}

TEST_F(HostMemory, OfControlGroupsOfTheFirstKind) {
  put("proc/self/cgroup", "8:cpu,cpuacct:/a\n7:memory:/of/the/host\n0::/\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n");
  put("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
  EXPECT_EQ(available(), 2500);
}

TEST_F(HostMemory, OfTheProcessOwnLimit) {
  put("proc/self/status", "Name: x\nVmSize:  1024 kB\nVmData: 100 kB\n");
  const pid_t process = ::fork();
  if (process == 0) {
    const rlimit limit{rlim_t{3} << 30, RLIM_INFINITY};
    const bool set = ::setrlimit(RLIMIT_AS, &limit) == 0;
    ::_exit(set && available() == (std::int64_t{3} << 30) - (1 << 20) ? 0 : 1);
  }
  int status = 1;
  ::waitpid(process, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace mamba3
