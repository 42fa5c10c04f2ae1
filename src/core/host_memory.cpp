#include "core/host_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace mamba3 {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

// The number behind a word that begins a line: "MemAvailable: 123 kB", "inactive_file 456".
std::optional<std::int64_t> value_of(const fs::path& path, const std::string& name) {
  std::ifstream in(path);
  for (std::string word; in >> word;) {
    std::int64_t value = 0;
    if (word == name && in >> value) return value;
    in.clear();
  }
  return std::nullopt;
}

// A file of one number; "max" is none.
std::optional<std::int64_t> number_in(const fs::path& path) {
  std::int64_t value = 0;
  if (!(std::ifstream(path) >> value)) return std::nullopt;
  return value;
}

// What the group of a folder has left; pages of files that it may drop at any time are free.
std::int64_t left_in_group(const fs::path& folder, const char* limit_name, const char* usage_name,
                           const char* files_name) {
  const auto limit = number_in(folder / limit_name);
  const auto usage = number_in(folder / usage_name);
  if (!limit || !usage) return kUnlimited;
  const std::int64_t files = value_of(folder / "memory.stat", files_name).value_or(0);
  return std::max<std::int64_t>(0, *limit - std::max<std::int64_t>(0, *usage - files));
}

// The group's folder and those around it. In a container the path may be one of the host's: then
// only the mount itself is there.
template <class Left>
std::int64_t least_of_groups(const fs::path& mount, const std::string& group, const Left& left) {
  std::int64_t least = kUnlimited;
  fs::path inside = fs::path(group).relative_path();
  for (;; inside = inside.parent_path()) {
    least = std::min(least, left(mount / inside));
    if (inside.empty()) return least;
  }
}

std::int64_t left_in_groups(const fs::path& root) {
  std::int64_t least = kUnlimited;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // "0::/path" or "7:memory:/path"
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      least = std::min(
          least, least_of_groups(root / "sys/fs/cgroup", group, [](const fs::path& folder) {
            return left_in_group(folder, "memory.max", "memory.current", "inactive_file");
          }));
    } else if (controllers == "memory") {
      least = std::min(
          least, least_of_groups(root / "sys/fs/cgroup/memory", group, [](const fs::path& folder) {
            return left_in_group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                 "total_inactive_file");
          }));
    }
  }
  return least;
}

std::int64_t left_of_limit(int resource, std::optional<std::int64_t> used_kib) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) return kUnlimited;
  if (limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const std::int64_t used = used_kib.value_or(0) * 1024;
  return std::max<std::int64_t>(0, static_cast<std::int64_t>(limit.rlim_cur) - used);
}

}  // namespace

std::int64_t available_memory_bytes(const fs::path& root) {
  const auto free_kib = value_of(root / "proc/meminfo", "MemAvailable:");
  const fs::path status = root / "proc/self/status";
  return std::min({free_kib ? *free_kib * 1024 : kUnlimited, left_in_groups(root),
                   left_of_limit(RLIMIT_AS, value_of(status, "VmSize:")),
                   left_of_limit(RLIMIT_DATA, value_of(status, "VmData:"))});
}

}  // namespace mamba3
