#include "cli/program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>

namespace mamba3 {
namespace {

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    read_end = ends[0];
    write_end = ends[1];
  }
  ~Pipe() {
    close_end(read_end);
    close_end(write_end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  static void close_end(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
};

[[noreturn]] void become_program(const std::vector<std::string>& arguments,
                                 const RunOptions& options, int in, int out, int err) {
  if (!options.out_path.empty()) out = ::open(options.out_path.c_str(), O_WRONLY | O_CREAT, 0666);
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  // One thread is enough for tiny models, and does not wait for others on a busy machine.
  ::setenv("MAMBA3_THREADS", "1", 1);
  for (const auto& [name, value] : options.environment) {
    ::setenv(name.c_str(), value.c_str(), 1);
  }
  std::vector<char*> words{const_cast<char*>(MAMBA3_CLI)};
  for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execv(MAMBA3_CLI, words.data());
  ::_exit(127);
}

// False at the end of the stream.
bool append_from(int fd, std::string& to) {
  std::array<char, 65536> block{};
  const ssize_t got = ::read(fd, block.data(), block.size());
  if (got <= 0) return false;
  to.append(block.data(), static_cast<std::size_t>(got));
  return true;
}

// Until the program has installed its handler of SIGINT, or has ended.
void wait_for_handler(pid_t process) {
  const std::string path = "/proc/" + std::to_string(process) + "/status";
  for (;;) {
    const std::string status = read_file(path);
    const std::size_t caught = status.find("SigCgt:");
    if (caught == std::string::npos || status.find("State:\tZ") != std::string::npos) return;
    const auto mask = std::stoull(status.substr(caught + 7), nullptr, 16);
    if ((mask >> (SIGINT - 1) & 1) != 0) return;
    ::usleep(1000);
  }
}

void collect(pid_t process, Pipe& out, Pipe& err, const RunOptions& options, Outcome& outcome) {
  int wait_ms = options.signal_after_ms;
  if (wait_ms >= 0) wait_for_handler(process);
  while (out.read_end >= 0 || err.read_end >= 0) {
    std::array<pollfd, 2> ends{{{out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}}};
    if (::poll(ends.data(), ends.size(), wait_ms) == 0) {
      ::kill(process, SIGINT);
      wait_ms = -1;
      continue;
    }
    if (ends[0].revents != 0) {
      bool more = append_from(out.read_end, outcome.out);
      if (more && options.on_output) more = options.on_output(process, outcome.out);
      if (!more) Pipe::close_end(out.read_end);
    }
    if (ends[1].revents != 0 && !append_from(err.read_end, outcome.err)) {
      Pipe::close_end(err.read_end);
    }
  }
}

// The characters by which byte-level tokenizers write bytes: printable ones stand for themselves,
// the others for U+0100 and what follows.
std::string byte_character(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

std::string make_model(const std::filesystem::path& folder, const std::string& name,
                       const nlohmann::json& changes) {
  nlohmann::json config{
      {"d_model", 32}, {"d_intermediate", 48}, {"n_layer", 2}, {"vocab_size", 257}};
  config["ssm_cfg"] = {{"layer", "Mamba3"}, {"d_state", 16}, {"headdim", 16}};
  config.merge_patch(changes);
  const std::filesystem::path config_path = folder / (name + ".json");
  const std::filesystem::path tokenizer_path = folder / "tokenizer.json";
  write_file(config_path, config.dump());
  write_file(tokenizer_path, byte_tokenizer_json());
  const std::string model = (folder / name).string();
  const Outcome made = run_mamba3({"init", "--config", config_path.string(), "-o", model, "--dtype",
                                   "fp32", "--tokenizer", tokenizer_path.string(), "-s", "7"});
  if (made.code != 0) throw std::runtime_error("init failed: " + made.err);
  return model;
}

std::string make_tiny_model(const std::filesystem::path& folder, const std::string& kind) {
  nlohmann::json changes = nlohmann::json::object();
  if (kind == "mimo") changes["ssm_cfg"] = {{"is_mimo", true}, {"mimo_rank", 2}};
  return make_model(folder, kind, changes);
}

}  // namespace

std::vector<nlohmann::json> Outcome::json_lines() const {
  std::vector<nlohmann::json> lines;
  std::istringstream in(out);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

Outcome run_mamba3(const std::vector<std::string>& arguments, const RunOptions& options) {
  TestFolder folder;
  write_file(folder / "stdin", options.input);
  const int in = ::open((folder / "stdin").c_str(), O_RDONLY | O_CLOEXEC);
  Pipe out, err;
  const pid_t process = ::fork();
  if (process == 0) become_program(arguments, options, in, out.write_end, err.write_end);
  ::close(in);
  Pipe::close_end(out.write_end);
  Pipe::close_end(err.write_end);
  Outcome outcome;
  collect(process, out, err, options, outcome);
  int status = 0;
  ::waitpid(process, &status, 0);
  if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  return outcome;
}

void expect_error(const Outcome& outcome, int code, const std::string& reason) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  const std::size_t begin = outcome.err.find("mamba3: error: ");
  ASSERT_NE(begin, std::string::npos) << outcome.err;
  const std::string paragraph = outcome.err.substr(begin);
  EXPECT_EQ(paragraph.find('\n'), paragraph.size() - 1) << "more than one line: " << paragraph;
  EXPECT_NE(paragraph.find("; "), std::string::npos) << paragraph;
  EXPECT_NE(paragraph.find("expected"), std::string::npos) << paragraph;
  EXPECT_NE(paragraph.find(reason), std::string::npos) << paragraph;
}

TestFolder::TestFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "mamba3-cli-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
  path_ = name;
}

TestFolder::~TestFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string read_file(const std::filesystem::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string changed_model(const std::filesystem::path& folder, const nlohmann::json& changes) {
  return make_model(folder, "changed", changes);
}

std::string tiny_model(const std::string& kind) {
  static const TestFolder folder;
  static std::map<std::string, std::string> made;
  std::string& model = made[kind];
  if (model.empty()) model = make_tiny_model(folder.path(), kind);
  return model;
}

std::string byte_tokenizer_json() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[byte_character(byte)] = byte;
  const char* end = "<|endoftext|>";
  nlohmann::json special{{"SpecialToken", {{"id", end}, {"type_id", 0}}}};
  nlohmann::json text{{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  nlohmann::json second{{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  nlohmann::json document{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {{{"id", 256},
         {"content", end},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"},
        {"add_prefix_space", false},
        {"trim_offsets", true},
        {"use_regex", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {special, text}},
        {"pair", {special, text, second}},
        {"special_tokens", {{end, {{"id", end}, {"ids", {256}}, {"tokens", {end}}}}}}}},
      {"decoder",
       {{"type", "ByteLevel"},
        {"add_prefix_space", true},
        {"trim_offsets", true},
        {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  return document.dump();
}

}  // namespace mamba3
