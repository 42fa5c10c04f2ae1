// What every op is given: threads, workspace memory, and where log lines go. One Context serves one
// caller at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "mamba3/device.h"

namespace mamba3 {

class Arena;
class Gpu;
class ThreadPool;
struct OpTimes;

enum class LogLevel { kDebug, kInfo, kWarning };
using LogCallback = std::function<void(LogLevel, const std::string&)>;

struct ContextOptions {
  int threads = 0;         // 0: one per processor this process may use
  std::uint64_t seed = 0;  // kept for the caller: what the library draws has seeds of its own
  LogCallback log;         // empty: the library stays silent
  Device device = {};
  // On a GPU, a sequence keeps its bits whatever is read or decoded beside it and wherever a prompt
  // is cut on the grid. Without, a few long prompts may be scanned in parts at once, and products
  // of steps of more than 16 sequences add in the order that is fastest for their number.
  bool same_bits = false;
};

class Context {
 public:
  explicit Context(ContextOptions options = {});
  ~Context();
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;

  int threads() const;
  ThreadPool& pool();
  Arena& workspace();  // see core/arena.h: scopes give back what they took
  // Null on a CPU. On a GPU all that an op's arguments point at lies in its memory, and ops return
  // before the work is done: its results are there for whatever follows in the stream.
  const std::shared_ptr<Gpu>& gpu() const;
  std::uint64_t seed() const;
  bool same_bits() const;
  void log(LogLevel level, const std::string& message) const;

  // Where ops add the time they take (core/op_timer.h); null, the default: nobody measures.
  void set_op_times(OpTimes* times);
  OpTimes* op_times() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mamba3
