// The documents of a text or JSONL file, one after the other, in memory that does not grow with the
// file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "io/byte_stream.h"

namespace mamba3 {

struct DocumentFormat {
  // A line that stands between documents of a text, without its line end. Empty: the whole text is
  // one. The line end before it belongs to the separator. Line ends are LF or CR LF.
  std::string separator = "<|endoftext|>";
  std::string json_key = "text";  // of a JSONL line, whose value is the document
};

// By the name, .xz taken off: .jsonl and .ndjson hold a document in each line, anything else is
// text.
bool holds_json_lines(std::filesystem::path path);

class DocumentReader {
 public:
  DocumentReader(const std::filesystem::path& path, DocumentFormat format);
  // The same from a stream; `name` is that of its file.
  DocumentReader(std::unique_ptr<ByteStream> stream, const std::filesystem::path& name,
                 DocumentFormat format);

  // Empty documents are left out. False at the end. Refuses lines that are no such JSON, by their
  // number, and documents of more than 256 MiB.
  bool next(std::string& document);
  std::int64_t file_bytes_read() const { return stream_->file_bytes_read(); }

 private:
  bool next_line(std::string& line);  // without its end; false at the end of the file
  bool next_text(std::string& document);
  bool is_separator(std::string_view line) const;
  bool next_json(std::string& document);
  bool fill();

  std::string path_;
  DocumentFormat format_;
  bool json_;
  std::unique_ptr<ByteStream> stream_;
  std::string buffer_;
  std::size_t at_ = 0;
  std::int64_t line_number_ = 0;
  bool line_ended_ = false;  // by a line end, not by the end of the file
  bool ended_ = false;
};

}  // namespace mamba3
