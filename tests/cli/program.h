// Runs the program under test and keeps what it did.
#pragma once

#include <csignal>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mamba3 {

struct Outcome {
  int code = -1;    // exit code; -1 when a signal ended it
  int signal = 0;   // that signal
  std::string out;  // stdout
  std::string err;  // stderr

  nlohmann::json json() const { return nlohmann::json::parse(out); }
  std::vector<nlohmann::json> json_lines() const;
};

struct RunOptions {
  std::string input;                               // stdin
  std::map<std::string, std::string> environment;  // added to this process's own
  std::string out_path;                            // stdout goes there instead of into Outcome::out
  // SIGINT then, counted from when the program is ready for it; negative: never.
  int signal_after_ms = -1;
  // Called with each piece of stdout as it comes; may signal the process or ask, by false, to close
  // the reading end.
  std::function<bool(pid_t process, const std::string& out_so_far)> on_output;
};

Outcome run_mamba3(const std::vector<std::string>& arguments, const RunOptions& options = {});

// Expects exit code `code`, nothing on stdout and one paragraph on stderr that holds `reason`.
void expect_error(const Outcome& outcome, int code, const std::string& reason);

// A folder that goes with the test.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& bytes);

// A folder with a tiny random model and a tokenizer of single bytes (BOS 256), made once by `init`.
// Kinds: "siso", "mimo".
std::string tiny_model(const std::string& kind);
// The same of another shape: `changes` are merged into the config (a JSON merge patch). In
// `folder`, with the tokenizer.
std::string changed_model(const std::filesystem::path& folder, const nlohmann::json& changes);
// The tokenizer.json of these.
std::string byte_tokenizer_json();

}  // namespace mamba3
