#include "train/metrics.h"

#include <nlohmann/json.hpp>
#include <string>

#include "io/atomic_file.h"

namespace mamba3 {
namespace {

// Lines of earlier steps; a line that a killed run left unfinished is none.
std::string lines_up_to(const std::filesystem::path& path, std::int64_t last_step) {
  std::string kept;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool known = json.is_object() && json.contains("step") && json["step"].is_number();
    if (known && json["step"].get<std::int64_t>() <= last_step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, std::int64_t last_step) {
  const std::string kept = lines_up_to(path, last_step);
  AtomicFile file(path);
  file.write(kept);
  file.commit();
  file_.open(path, std::ios::app);
}

void MetricsFile::write(const nlohmann::ordered_json& line) {
  file_.clear();
  file_ << line.dump() << '\n' << std::flush;
}

}  // namespace mamba3
