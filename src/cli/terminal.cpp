#include "cli/terminal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "core/check.h"

namespace mamba3::cli {
namespace {

std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler writes it");

void on_signal(int) {
  if (g_interrupted.exchange(true)) _exit(static_cast<int>(ErrorCode::kInterrupted));
}

std::string seconds_left(double seconds) {
  char text[32];
  if (seconds < 60) {
    std::snprintf(text, sizeof(text), "%.0f s left", seconds);
  } else if (seconds < 3600) {
    std::snprintf(text, sizeof(text), "%.0f min left", seconds / 60);
  } else {
    std::snprintf(text, sizeof(text), "%.1f h left", seconds / 3600);
  }
  return text;
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  // No SA_RESTART: a read from the terminal returns, so that Ctrl-C is noticed there too.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // it is under nohup
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its writing
}

const std::atomic<bool>& interrupted() {
  return g_interrupted;
}

void clear_interrupt() {
  g_interrupted = false;
}

void check_interrupt() {
  if (g_interrupted) fail(ErrorCode::kInterrupted, "interrupted");
}

void wait_seconds(int seconds, const std::function<void()>& poll) {
  for (int i = 0; i < 10 * seconds; ++i) {
    poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

void keep_standard_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest number that is free. What is read from it has ended, and writing to it fails.
    [[maybe_unused]] const int opened = ::open("/dev/null", O_RDONLY);
  }
}

void message(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const bool control =
        (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
    if (control) {
      char shown[8];
      std::snprintf(shown, sizeof(shown), "\\x%02x", static_cast<unsigned char>(c));
      line += shown;
    } else {
      line += c;
    }
  }
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

ProgressBar::ProgressBar(const CommonOptions& options, std::string what, std::string unit)
    : visible_(!options.quiet && isatty(STDERR_FILENO) == 1),
      what_(std::move(what)),
      unit_(std::move(unit)) {}

ProgressBar::~ProgressBar() {
  clear();
}

void ProgressBar::update(std::int64_t done, std::int64_t all, const std::string& note) {
  check_interrupt();
  if (!visible_ || all <= 0) return;
  const auto now = Clock::now();
  if (shown_ && now - drawn_ < std::chrono::milliseconds(100)) return;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  // Work that ends within a moment needs no bar.
  if (elapsed < 0.3) return;
  const double share = static_cast<double>(done) / static_cast<double>(all);
  std::string line =
      str("\r", what_, "  ", static_cast<int>(share * 100), " %  ", done, "/", all, " ", unit_);
  if (!note.empty()) line += "  " + note;
  if (share > 0.005) line += "  " + seconds_left(elapsed * (1 - share) / share);
  line += "\x1b[K";
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
  shown_ = true;
  drawn_ = now;
}

void ProgressBar::clear() {
  if (!shown_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace mamba3::cli
