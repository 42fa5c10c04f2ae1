#include "cli/common.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <system_error>

#include "cli/terminal.h"
#include "core/check.h"
#include "core/quote.h"
#include "engine/checkpoint_files.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kBundledModel = "siso-10m";

bool g_goes_on = false;  // when nobody reads stdout

// A file or, for "-", stdin; a signal that comes while it waits is noticed.
class InputFile : public ByteStream {
 public:
  explicit InputFile(const std::string& path) : path_(path) {
    fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    check_input(fd_ >= 0, path, " cannot be opened (", std::generic_category().message(errno),
                "); expected a readable file, or - for stdin; check the path");
  }
  ~InputFile() override {
    if (fd_ > STDIN_FILENO) ::close(fd_);
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::size_t read(char* to, std::size_t most) override {
    for (;;) {
      const ssize_t got = ::read(fd_, to, most);
      if (got >= 0) {
        read_ += got;
        return static_cast<std::size_t>(got);
      }
      check_interrupt();
      check_input(errno == EINTR, path_, " cannot be read (",
                  std::generic_category().message(errno),
                  "); expected a readable file, or - for stdin; check the path");
    }
  }
  std::int64_t file_bytes_read() const override { return read_; }

 private:
  std::string path_;
  int fd_ = -1;
  std::int64_t read_ = 0;
};

// Beside an installed binary, else in the source tree that it was built from.
std::vector<fs::path> bundled_candidates() {
  std::vector<fs::path> folders;
  std::error_code ec;
  const fs::path executable = fs::read_symlink("/proc/self/exe", ec);
  if (!ec) folders.push_back(executable.parent_path() / MAMBA3_MODEL_DIR_INSTALL);
  folders.emplace_back(MAMBA3_MODEL_DIR_SOURCE);
  for (fs::path& folder : folders) folder = (folder / kBundledModel).lexically_normal();
  return folders;
}

}  // namespace

Device choose_device(const CommonOptions& options) {
  const std::string& name = options.device;
  if (name == "cpu") return {};
  if (name == "auto") return {gpu_count() > 0 ? DeviceKind::kCuda : DeviceKind::kCpu, 0};
  if (name == "cuda") return {DeviceKind::kCuda, 0};
  const bool numbered = name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
                        name.find_first_not_of("0123456789", 5) == std::string::npos;
  if (numbered) return {DeviceKind::kCuda, std::stoi(name.substr(5))};
  fail(ErrorCode::kUsage, "--device is '", name,
       "'; expected auto, cpu, cuda or cuda:N; correct the option");
}

Context make_context(const CommonOptions& options, Device device, LogCallback log) {
  ContextOptions context;
  context.device = device;
  context.threads = options.threads;
  context.seed = options.seed.value_or(0);
  context.same_bits = options.same_bits;
  context.log = std::move(log);
  return Context(std::move(context));
}

Context make_context(const CommonOptions& options, Device device) {
  return make_context(
      options, device,
      [quiet = options.quiet, verbose = options.verbose](LogLevel level, const std::string& text) {
        if (quiet || (level == LogLevel::kDebug && !verbose)) return;
        message((level == LogLevel::kWarning ? "mamba3: warning: " : "mamba3: ") + text);
      });
}

LoadOptions load_options(const CommonOptions& options) {
  LoadOptions load;
  load.tokenizer = options.tokenizer;
  load.strict = options.strict;
  if (options.dtype == "fp32") load.compute = ComputeDType::kF32;
  if (options.dtype == "bf16") load.compute = ComputeDType::kBf16;
  if (options.a_activation == "heavy-tail") load.a_activation = AActivation::kHeavyTail;
  if (options.a_activation == "softplus") load.a_activation = AActivation::kSoftplus;
  return load;
}

fs::path model_folder(const CommonOptions& options) {
  if (!options.model.empty()) return options.model;
  std::string tried;
  for (const fs::path& folder : bundled_candidates()) {
    std::error_code ec;
    if (fs::exists(folder / "config.json", ec)) return folder;
    tried += (tried.empty() ? "" : ", ") + folder.string();
  }
  fail(ErrorCode::kBadInput, "no model was named and the bundled one is not at ", tried,
       "; expected a folder with config.json and weights; name one with -m");
}

LoadedModel load_model(const CommonOptions& options, Context& ctx, std::int64_t batch) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  LoadOptions load = load_options(options);
  load.batch = batch;
  loaded.checkpoint = load_checkpoint(model_folder(options), load, ctx);
  loaded.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  check_interrupt();
  return loaded;
}

const Tokenizer& need_tokenizer(const Checkpoint& checkpoint) {
  check_input(checkpoint.tokenizer != nullptr,
              "the model's folder has no tokenizer.json; expected one to turn text into ids; name "
              "one with --tokenizer, or give ids instead of text");
  return *checkpoint.tokenizer;
}

std::shared_ptr<const Tokenizer> load_tokenizer(const CommonOptions& options) {
  fs::path folder;
  if (options.tokenizer.empty()) folder = model_folder(options);
  auto tokenizer = find_tokenizer(folder, options.tokenizer);
  check_input(tokenizer != nullptr, quote(folder.string()),
              " has no tokenizer.json or tokenizer.model; expected one of them; name the file with "
              "--tokenizer");
  return tokenizer;
}

std::unique_ptr<ByteStream> open_input(const std::string& path) {
  if (fs::path(path).extension() == ".xz") return ByteStream::open(path);
  return std::make_unique<InputFile>(path);
}

std::string read_text(const std::string& path) {
  constexpr std::size_t kBlockBytes = 1 << 20;
  constexpr std::size_t kMostBytes = std::size_t{1} << 32;  // a device may never end
  InputFile file(path);
  std::string text;
  std::string block(kBlockBytes, '\0');
  while (const std::size_t got = file.read(block.data(), block.size())) {
    text.append(block, 0, got);
    check_input(text.size() <= kMostBytes, quote(path), " has more than ", kMostBytes,
                " bytes; expected a file that fits in memory; split it");
  }
  return text;
}

void go_on_without_reader() {
  g_goes_on = true;
}

void write_out(std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(STDOUT_FILENO, text.data(), text.size());
    if (done >= 0) {
      text.remove_prefix(static_cast<std::size_t>(done));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EPIPE && g_goes_on) return;
    if (errno == EPIPE) throw ReaderGone{};
    fail(ErrorCode::kBadInput, "stdout cannot be written (", std::generic_category().message(errno),
         "); expected room for the results; free space or send them elsewhere");
  }
}

void write_json(const Json& document) {
  write_out(document.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void check_place(const std::string& option, const std::string& path) {
  if (path.empty()) return;
  std::error_code ignored;
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
  check_input(!fs::is_directory(path, ignored), option, ": ", quote(path),
              " is a folder; expected a file name; choose another");
  check_input(fs::is_directory(folder, ignored), option, ": ", quote(path), " is in ",
              quote(folder.string()), ", which is no folder; expected one that is there; make it");
  const bool replaces = fs::exists(path, ignored) && !fs::is_regular_file(path, ignored);
  check_input(replaces || ::access(folder.c_str(), W_OK) == 0, option, ": ", quote(folder.string()),
              " cannot be written (", std::generic_category().message(errno),
              "); expected a folder that can; choose another");
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
  return text;
}

}  // namespace mamba3::cli
