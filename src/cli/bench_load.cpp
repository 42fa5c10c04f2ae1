#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <numeric>
#include <system_error>
#include <thread>

#include "cli/bench.h"
#include "cli/bench_timing.h"
#include "cli/checkpoint_folder.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "engine/checkpoint_files.h"
#include "model/init.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A folder that is removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "mamba3-bench-XXXXXX").string();
    check_input(::mkdtemp(name.data()) != nullptr, "cannot make a folder like ", name, " (",
                std::generic_category().message(errno),
                "); expected room for a checkpoint; set TMPDIR");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// The least that any reader of a whole file must do: touch all of its pages once.
double touch_seconds(const std::vector<std::shared_ptr<const MappedFile>>& files, Context& ctx) {
  constexpr std::int64_t kPieceBytes = std::int64_t{1} << 22;
  const auto start = Clock::now();
  std::vector<std::uint64_t> sums;
  for (const auto& file : files) {
    const auto bytes = file->bytes();
    const std::int64_t pieces = (std::ssize(bytes) + kPieceBytes - 1) / kPieceBytes;
    sums.assign(static_cast<std::size_t>(pieces), 0);
    ctx.pool().run(pieces, [&](std::int64_t piece, int) {
      const std::int64_t end = std::min(std::ssize(bytes), (piece + 1) * kPieceBytes);
      std::uint64_t sum = 0, word = 0;
      for (std::int64_t i = piece * kPieceBytes; i + 8 <= end; i += 8) {
        std::memcpy(&word, bytes.data() + i, 8);
        sum += word;
      }
      sums[piece] = sum;
    });
  }
  volatile std::uint64_t keep = std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
  static_cast<void>(keep);
  return seconds_since(start);
}

// From fork to exit of a process that generates one token: an upper bound of its first token.
double first_token_seconds(const fs::path& folder, const BenchOptions& options) {
  const std::string threads = std::to_string(options.common.threads);
  const std::string model = folder.string();
  std::vector<std::string> words{"mamba3", "generate",     "-q",       "-m",
                                 model,    "-t",           threads,    "-n",
                                 "1",      "--prompt-ids", "1,2",      "--temp",
                                 "0",      "--json",       "--device", options.common.device};
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  const auto start = Clock::now();
  pid_t child = 0;
  const int failed =
      ::posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    fail(ErrorCode::kUnavailable, "cannot start a second process (",
         std::generic_category().message(failed),
         "); expected to measure its first token; leave out bench load");
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  check_interrupt();
  check_input(WIFEXITED(status) && WEXITSTATUS(status) == 0, "generating one token with ", model,
              " failed; expected a usable checkpoint; run mamba3 generate -m on it");
  return seconds_since(start);
}

void measure(const std::string& name, const fs::path& folder, const BenchOptions& options,
             BenchReport& report, Context& ctx) {
  LoadOptions load = load_options(options.common);
  Context silent(ContextOptions{options.common.threads, 0, {}, choose_device(options.common)});
  double bytes = 0;
  {
    const CheckpointFiles files = open_checkpoint_files(folder);
    for (const auto& file : files.weights->files)
      bytes += static_cast<double>(file->bytes().size());
  }
  std::vector<double> touch, whole, first;
  ProgressBar bar(options.common, "loading " + name, "runs");
  for (std::int64_t i = 0; i <= options.repeat; ++i) {
    bar.update(i, options.repeat + 1);
    const CheckpointFiles files = open_checkpoint_files(folder);
    touch.push_back(touch_seconds(files.weights->files, ctx));
    const auto start = Clock::now();
    load_checkpoint(folder, load, silent);
    whole.push_back(seconds_since(start));
    first.push_back(first_token_seconds(folder, options));
  }
  bar.clear();
  // The first round has warmed the page cache.
  for (auto* times : {&touch, &whole, &first}) times->erase(times->begin());
  BenchRow row;
  row.name = "load " + name;
  row.value = median(whole);
  row.unit = "s";
  row.bytes = bytes;
  row.ceiling = median(touch);
  report.add(row);
  row = {};
  row.name = "first token " + name + ", whole process";
  row.value = median(first);
  row.unit = "s";
  row.bytes = bytes;
  report.add(row);
}

}  // namespace

void bench_load(const BenchOptions& options, BenchReport& report, Context& ctx) {
  if (options.presets.empty()) {
    const fs::path folder = model_folder(options.common);
    measure(fs::weakly_canonical(folder).filename().string(), folder, options, report, ctx);
  }
  for (const std::string& name : options.presets) {
    TemporaryFolder temporary;
    const fs::path folder = temporary.path() / name;
    WriteOptions write;
    write.output = folder.string();
    {
      const ModelConfig config = preset(name);
      const InitialTensors tensors = init_tensors(config, DType::kBf16, 0, ctx);
      write_checkpoint(config, tensors.tensors, {}, write, options.common);
    }
    measure(name, folder, options, report, ctx);
  }
}

}  // namespace mamba3::cli
