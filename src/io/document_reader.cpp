#include "io/document_reader.h"

#include <algorithm>

#include "core/check.h"
#include "io/json.h"

namespace mamba3 {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 16;
constexpr std::size_t kMostDocumentBytes = std::size_t{256} << 20;

}  // namespace

bool holds_json_lines(std::filesystem::path path) {
  if (path.extension() == ".xz") path.replace_extension();
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

DocumentReader::DocumentReader(const std::filesystem::path& path, DocumentFormat format)
    : DocumentReader(ByteStream::open(path), path, std::move(format)) {}

DocumentReader::DocumentReader(std::unique_ptr<ByteStream> stream,
                               const std::filesystem::path& name, DocumentFormat format)
    : path_(name.string()),
      format_(std::move(format)),
      json_(holds_json_lines(name)),
      stream_(std::move(stream)) {}

bool DocumentReader::next(std::string& document) {
  do {
    if (!(json_ ? next_json(document) : next_text(document))) return false;
  } while (document.empty());
  return true;
}

bool DocumentReader::fill() {
  buffer_.resize(kBufferBytes);
  at_ = 0;
  buffer_.resize(stream_->read(buffer_.data(), kBufferBytes));
  return !buffer_.empty();
}

bool DocumentReader::next_line(std::string& line) {
  line.clear();
  bool any = false;
  while (at_ < buffer_.size() || fill()) {
    any = true;
    const std::string_view left(buffer_.data() + at_, buffer_.size() - at_);
    const std::size_t count = std::min(left.find('\n'), left.size());
    line += left.substr(0, count);
    check_input(line.size() <= kMostDocumentBytes, path_, ", line ", line_number_ + 1,
                " has more than ", kMostDocumentBytes >> 20, " MiB; expected shorter documents");
    line_ended_ = count < left.size();
    at_ += count + (line_ended_ ? 1 : 0);
    if (line_ended_) break;
  }
  line_number_ += any;
  return any;
}

bool DocumentReader::next_text(std::string& document) {
  document.clear();
  if (ended_) return false;
  std::string line;
  for (bool first = true;; first = false) {
    if (!next_line(line)) {
      ended_ = true;
      if (!first && line_ended_) document += '\n';  // no separator has taken it
      return !document.empty();
    }
    if (is_separator(line)) {
      if (line.ends_with('\r') && document.ends_with('\r')) document.pop_back();
      return true;
    }
    if (!first) document += '\n';
    document += line;
    check_input(document.size() <= kMostDocumentBytes, path_, ", up to line ", line_number_,
                ": a document has more than ", kMostDocumentBytes >> 20,
                " MiB; expected shorter ones; is the separator right?");
  }
}

// Lines may end as on Windows.
bool DocumentReader::is_separator(std::string_view line) const {
  if (format_.separator.empty()) return false;
  return line == format_.separator ||
         (line.ends_with('\r') && line.substr(0, line.size() - 1) == format_.separator);
}

bool DocumentReader::next_json(std::string& document) {
  std::string line;
  do {
    if (!next_line(line)) return false;
  } while (line.find_first_not_of(" \t\r") == std::string::npos);
  const std::string where = str(path_, ", line ", line_number_);
  const nlohmann::json value =
      parse_json_limited(line, where, {static_cast<std::int64_t>(kMostDocumentBytes)});
  const bool found =
      value.is_object() && value.contains(format_.json_key) && value[format_.json_key].is_string();
  check_input(found, where, " holds no text named \"", format_.json_key,
              "\"; expected an object with it in each line");
  document = value[format_.json_key].get<std::string>();
  return true;
}

}  // namespace mamba3
