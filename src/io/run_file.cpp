// Read event by event, so that nothing is built that an input could make large or deep.
#include "io/run_file.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>

#include "core/check.h"
#include "core/quote.h"
#include "io/mapped_file.h"

namespace mamba3 {
namespace {

constexpr std::size_t kMostBytes = std::size_t{256} << 10;

[[noreturn]] void refuse(const std::string& origin, const YAML::Mark& mark,
                         const std::string& found) {
  fail(ErrorCode::kBadInput, origin, ", line ", mark.line + 1, ": ", found,
       "; expected YAML or JSON with a line \"option: value\" for each option; correct the file");
}

// YAML has none of them, and its parser takes some for marks of its own; a carriage return without
// a line feed it takes for text.
void refuse_control_bytes(std::string_view text, const std::string& origin) {
  YAML::Mark mark;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++mark.line;
    if (c == '\n' || c == '\t' || (c == '\r' && text.substr(i + 1, 1) == "\n")) continue;
    if ((c >= 0 && c < 0x20) || c == 0x7f) {
      refuse(origin, mark, str("a control character, byte ", int{c}, ", stands in the text"));
    }
  }
}

class Reader : public YAML::EventHandler {
 public:
  explicit Reader(std::string origin) : origin_(std::move(origin)) {}

  std::vector<RunFileEntry> take() { return std::move(entries_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) refuse(origin_, mark, "a second document begins");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (in_ == In::kNothing) return;  // an empty file
    refuse(origin_, mark, in_ == In::kMap ? "a key is missing" : what() + " has no value");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse(origin_, mark, "an alias stands where a value should be");
  }
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    refuse(origin_, mark, "an anchor stands where a value should be");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& text) override {
    check_tag(mark, tag);
    // Nor could it stand on a command line.
    if (text.find('\0') != std::string::npos) refuse(origin_, mark, "a value holds a byte 0");
    switch (in_) {
      case In::kNothing:
        refuse(origin_, mark, "a single value stands where options should be");
      case In::kMap:
        return begin_entry(mark, text);
      case In::kValue:
        entries_.back().values = {text};
        in_ = In::kMap;
        return;
      case In::kList:
        entries_.back().values.push_back(text);
    }
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    check_tag(mark, tag);
    if (in_ != In::kValue) refuse(origin_, mark, "a list stands where none can be");
    entries_.back().list = true;
    in_ = In::kList;
  }
  void OnSequenceEnd() override { in_ = In::kMap; }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    check_tag(mark, tag);
    if (in_ != In::kNothing) {
      refuse(origin_, mark, entries_.empty() ? "a key is no text" : what() + " holds other keys");
    }
    in_ = In::kMap;
  }
  void OnMapEnd() override { in_ = In::kNothing; }

 private:
  enum class In { kNothing, kMap, kValue, kList };  // kMap: the next is a key

  std::string what() const { return quote(entries_.back().key); }

  void begin_entry(const YAML::Mark& mark, const std::string& key) {
    const auto same = std::ranges::find(entries_, key, &RunFileEntry::key);
    if (same != entries_.end()) {
      refuse(origin_, mark, str(quote(key), " comes again after line ", same->line));
    }
    entries_.push_back({key, {}, false, mark.line + 1});
    in_ = In::kValue;
  }

  // Of plain and quoted values.
  void check_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (tag.empty() || tag == "?" || tag == "!") return;
    refuse(origin_, mark, str("a value has the tag ", quote(tag)));
  }

  std::string origin_;
  std::vector<RunFileEntry> entries_;
  int documents_ = 0;
  In in_ = In::kNothing;
};

}  // namespace

std::vector<RunFileEntry> parse_run_file(std::string_view text, const std::string& origin) {
  check_input(text.size() <= kMostBytes, origin, " has ", text.size(), " bytes; expected at most ",
              kMostBytes, ", and options in it");
  refuse_control_bytes(text, origin);
  std::istringstream in{std::string(text)};
  Reader reader(origin);
  try {
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(reader)) {
    }
  } catch (const YAML::Exception& error) {
    refuse(origin, error.mark, error.msg);
  }
  return reader.take();
}

std::vector<RunFileEntry> read_run_file(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  const auto* text = reinterpret_cast<const char*>(file->bytes().data());
  return parse_run_file({text, file->bytes().size()}, path.string());
}

std::string run_file_text(const std::vector<RunFileEntry>& entries,
                          const std::vector<std::string>& comments) {
  std::string text;
  for (std::string comment : comments) {
    std::ranges::replace_if(
        comment, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
    text += "# " + comment + "\n";
  }
  YAML::Emitter out;
  out << YAML::BeginMap;
  for (const RunFileEntry& entry : entries) {
    out << YAML::Key << entry.key << YAML::Value;
    if (entry.list) {
      out << YAML::BeginSeq;
      for (const std::string& value : entry.values) out << value;
      out << YAML::EndSeq;
    } else {
      out << entry.values.front();
    }
  }
  out << YAML::EndMap;
  return text + out.c_str() + "\n";
}

}  // namespace mamba3
