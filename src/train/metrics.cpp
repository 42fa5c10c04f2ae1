#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "io/atomic_file.h"

namespace mamba3 {
namespace {

double number_in(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : NAN;
}

bool has_step(const nlohmann::json& line) {
  return line.is_object() && line.contains("step") && line["step"].is_number_integer();
}

// Lines of figures; a line that a killed run left unfinished is none.
void for_each_line(
    std::istream& in,
    const std::function<void(const std::string& line, const nlohmann::json& json)>& take) {
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (has_step(json)) take(line, json);
  }
}

// Nothing of what is no file: a pipe would wait for a writer.
std::ifstream open_lines(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored) ? std::ifstream(path) : std::ifstream();
}

}  // namespace

bool MetricsHistory::add(const nlohmann::json& line) {
  if (!has_step(line)) return false;
  const auto step = line["step"].get<std::int64_t>();
  const double before = steps.empty() ? 0 : steps.back().tokens;
  if (line.contains("held_out")) {
    evaluations.push_back(
        {step, before, number_in(line, "held_out"), number_in(line, "held_out_accuracy")});
    return true;
  }
  if (!line.contains("loss")) return false;
  StepFigures figures{
      step, before, number_in(line, "loss"), number_in(line, "rate"), number_in(line, "norm"), NAN};
  const double tokens = number_in(line, "tokens"), seconds = number_in(line, "seconds");
  if (tokens > 0) figures.tokens += tokens;
  if (seconds > 0) figures.tokens_per_s = tokens / seconds;
  steps.push_back(figures);
  return true;
}

MetricsHistory read_metrics(const std::filesystem::path& path) {
  std::ifstream in = open_lines(path);
  return read_metrics(in);
}

MetricsHistory read_metrics(std::istream& lines) {
  MetricsHistory history;
  for_each_line(lines, [&](const std::string&, const nlohmann::json& json) { history.add(json); });
  return history;
}

MetricsFile::MetricsFile(const std::filesystem::path& path, std::int64_t last_step) {
  std::string kept;
  std::ifstream in = open_lines(path);
  for_each_line(in, [&](const std::string& line, const nlohmann::json& json) {
    if (json["step"].get<std::int64_t>() > last_step) return;
    kept += line + "\n";
    history_.add(json);
  });
  write_atomically(path, kept);
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
}

MetricsFile::~MetricsFile() {
  if (fd_ >= 0) ::close(fd_);
}

bool MetricsFile::write(const nlohmann::ordered_json& line) {
  history_.add(nlohmann::json(line));
  waiting_ += line.dump() + "\n";
  return flush();
}

bool MetricsFile::flush() {
  while (!waiting_.empty()) {
    const ssize_t done = ::write(fd_, waiting_.data(), waiting_.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    waiting_.erase(0, static_cast<std::size_t>(done));
  }
  return true;
}

}  // namespace mamba3
