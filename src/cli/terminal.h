// The user's side of a long command: Ctrl-C, messages and progress on stderr.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "cli/common.h"

namespace mamba3::cli {

// SIGINT, SIGTERM and, unless it is ignored, SIGHUP ask for a clean end, the second one forces it;
// SIGPIPE becomes a write error.
void install_signal_handlers();
const std::atomic<bool>& interrupted();
void clear_interrupt();
// Throws Error(kInterrupted) once the user asked for the end.
void check_interrupt();

// Asks ten times a second whether to go on: throws what `poll` throws.
void wait_seconds(int seconds, const std::function<void()>& poll);
// Where stdin, stdout or stderr is closed, the next file that is opened would take its place, and
// what is printed would end there. To be called before any is.
void keep_standard_streams();

// A line on stderr. Control characters, which names in files may hold, are shown as \xNN.
void message(const std::string& text);

// One line on a terminal's stderr, with the time left; silent with --quiet or without a terminal.
class ProgressBar {
 public:
  ProgressBar(const CommonOptions& options, std::string what, std::string unit);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Also where a long command notices Ctrl-C: throws Error(kInterrupted).
  // `note` is shown behind the numbers.
  void update(std::int64_t done, std::int64_t all, const std::string& note = "");
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool shown_ = false;
  bool visible_;
  std::string what_;
  std::string unit_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_{};
};

}  // namespace mamba3::cli
