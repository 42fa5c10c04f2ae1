// Options in a file, in YAML or in JSON, which is a part of YAML: a key for each, whose value is
// one of them or a list.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

struct RunFileEntry {
  std::string key;
  std::vector<std::string> values;  // as they are written: numbers too
  bool list = false;
  int line = 0;  // of the key, from 1

  bool operator==(const RunFileEntry& other) const {
    return key == other.key && values == other.values && list == other.list;
  }
};

// Refuses, with the line, what is not YAML, a key without a value or that comes twice, and what no
// option has: control characters, values that hold others, aliases, tags. `origin` names the text
// in messages. Texts of more than 256 KiB are refused.
std::vector<RunFileEntry> parse_run_file(std::string_view text, const std::string& origin);
std::vector<RunFileEntry> read_run_file(const std::filesystem::path& path);

// YAML that is parsed to the same entries, below comments.
std::string run_file_text(const std::vector<RunFileEntry>& entries,
                          const std::vector<std::string>& comments);

}  // namespace mamba3
