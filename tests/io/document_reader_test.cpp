#include "io/document_reader.h"

#include <lzma.h>

#include "file_test_util.h"

namespace mamba3 {
namespace {

using Documents = std::vector<std::string>;

std::string packed(const std::string& text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  std::size_t size = 0;
  const lzma_ret result = lzma_easy_buffer_encode(
      1, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const std::uint8_t*>(text.data()), text.size(),
      reinterpret_cast<std::uint8_t*>(out.data()), &size, out.size());
  EXPECT_EQ(result, LZMA_OK);
  out.resize(size);
  return out;
}

Documents read_all(const std::filesystem::path& path, const DocumentFormat& format = {}) {
  DocumentReader reader(path, format);
  Documents out;
  for (std::string document; reader.next(document);) out.push_back(document);
  EXPECT_EQ(reader.file_bytes_read(), static_cast<std::int64_t>(std::filesystem::file_size(path)));
  return out;
}

class DocumentReaderTest : public ::testing::Test {
 protected:
  std::filesystem::path put(const std::string& name, const std::string& text) {
    write_text(folder_ / name, text);
    return folder_ / name;
  }
  TempFolder folder_;
};

TEST_F(DocumentReaderTest, CutsTextsAtSeparatorLines) {
  const std::string text =
      "<|endoftext|>\none\n\nmore\n<|endoftext|>\n\n<|endoftext|>\n<|endoftext|>\n"
      "two <|endoftext|> is no line\n<|endoftext|>\nthree\n";
  const Documents expected = {"one\n\nmore", "two <|endoftext|> is no line", "three\n"};
  EXPECT_EQ(read_all(put("a.txt", text)), expected);
  EXPECT_EQ(read_all(put("a.txt.xz", packed(text))), expected);
  EXPECT_EQ(read_all(put("b.txt", "one\r\n<|endoftext|>"), {"<|endoftext|>"}), Documents{"one\r"});
  EXPECT_EQ(read_all(put("b.txt", "a\r\nb\r\n--\r\nc\n--\r\n--\r\nd\r\n--\r"), {"--"}),
            (Documents{"a\r\nb", "c", "d"}));
  EXPECT_EQ(read_all(put("b.txt", "a\n\r\nb"), {""}), Documents{"a\n\r\nb"});
  EXPECT_EQ(read_all(put("b.txt", "a\n--\nb"), {"--"}), (Documents{"a", "b"}));
  EXPECT_EQ(read_all(put("b.txt", text), {""}), Documents{text});
  EXPECT_EQ(read_all(put("b.txt", "")), Documents{});
  EXPECT_EQ(read_all(put("b.txt", "\n")), Documents{"\n"});
}

TEST_F(DocumentReaderTest, LongTextsCrossItsBuffer) {
  std::string text;
  Documents expected;
  for (int i = 0; i < 50; ++i) {
    expected.push_back(std::string(static_cast<std::size_t>(i * 997), 'a') + "\n" +
                       std::to_string(i));
    text += expected.back() + "\n<|endoftext|>\n";
  }
  EXPECT_EQ(read_all(put("a.txt", text)), expected);
  EXPECT_EQ(read_all(put("a.txt.xz", packed(text) + packed("end"))),
            (expected.push_back("end"), expected));
}

TEST_F(DocumentReaderTest, ReadsJsonLines) {
  const std::string text =
      "{\"text\": \"one\\ntwo\"}\n\n  {\"id\": 3, \"text\": \"\"}\n{\"text\":\"\\u00e9\"}";
  const Documents expected = {"one\ntwo", "é"};
  EXPECT_EQ(read_all(put("a.jsonl", text)), expected);
  EXPECT_EQ(read_all(put("a.ndjson.xz", packed(text))), expected);
  EXPECT_EQ(read_all(put("b.jsonl", "{\"body\": \"x\"}"), {"", "body"}), Documents{"x"});
}

TEST_F(DocumentReaderTest, RefusesWhatItCannotRead) {
  const auto reading = [&](const std::string& name, const std::string& text) {
    return [this, name, text] { read_all(put(name, text)); };
  };
  expect_error("cannot be opened", [&] { read_all(folder_ / "none.txt"); });
  expect_error("is a folder", [&] { read_all(folder_.path()); });
  expect_error("line 2 holds no text named \"text\"", reading("a.jsonl", "{\"text\":\"\"}\n[]"));
  expect_error("line 1 holds no text", reading("a.jsonl", "{\"text\": 3}"));
  expect_error("line 3", reading("a.jsonl", "\n\n{"));
  expect_error("is no .xz archive", reading("a.txt.xz", std::string(99, 't')));
  const std::string archive = packed(std::string(5000, 'x') + "y");
  expect_error("ends in the middle", reading("a.txt.xz", archive.substr(0, archive.size() - 9)));
  std::string damaged = archive;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 0x55);
  expect_error("damaged", reading("a.txt.xz", damaged));
}

}  // namespace
}  // namespace mamba3
