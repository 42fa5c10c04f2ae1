#include "cli/bench_origin.h"

#include <ctime>
#include <fstream>
#include <sstream>
#include <string_view>

#include "cli/build_commit.h"

namespace mamba3::cli {
namespace {

// Options that say where results go, not what is measured; each takes a value.
bool only_names_a_file(std::string_view word) {
  return word == "--out" || word == "--compare" || word == "--baseline";
}

}  // namespace

std::string command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::string line = "mamba3", word;
  std::getline(in, word, '\0');  // the program's own name
  while (std::getline(in, word, '\0')) {
    if (only_names_a_file(word)) {
      std::getline(in, word, '\0');
    } else if (word != "--json" && word != "-q" && word != "--quiet") {
      line += " " + word;
    }
  }
  return line;
}

std::string build_commit() {
  return kBuildCommit;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", &parts);
  return text;
}

std::string driver_in(const std::string& text) {
  std::istringstream in(text);
  for (std::string word; in >> word;) {
    const bool version = word.find_first_not_of("0123456789.") == std::string::npos &&
                         word.find('.') != std::string::npos;
    if (version) return word;
  }
  return "";
}

std::string gpu_driver() {
  for (const char* path : {"/sys/module/nvidia/version", "/proc/driver/nvidia/version"}) {
    std::ifstream in(path);
    std::ostringstream text;
    text << in.rdbuf();
    std::string version = driver_in(text.str());
    if (!version.empty()) return version;
  }
  return "";
}

}  // namespace mamba3::cli
