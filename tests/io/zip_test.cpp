#include <gtest/gtest.h>

#include "file_test_util.h"
#include "io/bytes.h"
#include "io/crc32.h"
#include "io/zip_reader.h"
#include "io/zip_writer.h"

namespace mamba3 {
namespace {

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Two entries: a (5 bytes) and b (100).
std::string make_archive(std::uint64_t limit = zip::kIn64) {
  const TempFolder folder;
  AtomicFile file(folder / "x.zip");
  ZipWriter archive(file, limit);
  WriteProgress progress({}, 0);
  archive.add("f/a", as_bytes("hello"), progress);
  archive.add("f/b", as_bytes(std::string(100, 'b')), progress);
  archive.finish();
  file.commit();
  return read_text(folder / "x.zip");
}

void expect_refused(const std::string& part, const std::string& archive) {
  expect_error(part, [&] { read_zip_directory(as_bytes(archive), "input"); });
}

template <class T>
void put(std::string& bytes, std::size_t at, T value) {
  ASSERT_LE(at + sizeof(T), bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

std::size_t record_at(const std::string& archive, int index) {
  std::size_t at = archive.find("PK\x01\x02");
  while (index-- > 0) at = archive.find("PK\x01\x02", at + 1);
  return at;
}

TEST(Crc32, KnownValues) {
  EXPECT_EQ(crc32(as_bytes("123456789")), 0xcbf43926u);
  EXPECT_EQ(crc32({}), 0u);
  const std::string text = "The quick brown fox jumps over the lazy dog";
  EXPECT_EQ(crc32(as_bytes(text)), 0x414fa339u);
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const std::uint32_t first = crc32(as_bytes(text).first(cut));
    EXPECT_EQ(crc32(as_bytes(text).subspan(cut), first), 0x414fa339u) << cut;
  }
}

TEST(Zip, WrittenAndReadWithAndWithout64BitFields) {
  for (const std::uint64_t limit :
       {std::uint64_t{zip::kIn64}, std::uint64_t{50}, std::uint64_t{0}}) {
    const std::string archive = make_archive(limit);
    const ZipDirectory entries = read_zip_directory(as_bytes(archive), "input");
    ASSERT_EQ(entries.size(), 2u);
    EXPECT_EQ(text_of(entries.at("f/a").data), "hello");
    EXPECT_EQ(text_of(entries.at("f/b").data), std::string(100, 'b'));
    for (const auto& [name, entry] : entries) {
      EXPECT_NO_THROW(check_crc(entry, name, "input"));
      EXPECT_EQ((entry.data.data() - as_bytes(archive).data()) % 64, 0) << name;
    }
  }
}

TEST(Zip, AComment) {
  std::string archive = make_archive();
  put<std::uint16_t>(archive, archive.size() - 2, 30);
  archive += "PK\x05\x06" + std::string(26, '!');  // looks like an end record, but is not one
  EXPECT_EQ(read_zip_directory(as_bytes(archive), "input").size(), 2u);
}

TEST(Zip, EveryTruncationIsRefused) {
  const std::string archive = make_archive(50);
  for (std::size_t size = 0; size < archive.size(); ++size) {
    EXPECT_NE(error_of([&] { read_zip_directory(as_bytes(archive.substr(0, size)), "input"); }), "")
        << size;
  }
}

TEST(Zip, LyingDirectories) {
  const std::string good = make_archive();
  const std::size_t a = record_at(good, 0);
  const std::size_t b = record_at(good, 1);
  const auto changed = [&](std::size_t at, auto value) {
    std::string out = good;
    put(out, at, value);
    return out;
  };
  expect_refused("is encrypted", changed(a + 8, std::uint16_t{1}));
  expect_refused("is compressed (method 8, deflate)", changed(a + 10, std::uint16_t{8}));
  expect_refused("is compressed (method 93)", changed(a + 10, std::uint16_t{93}));
  expect_refused("has two sizes", changed(a + 20, std::uint32_t{4}));
  expect_refused("contradicts the directory", changed(a + 16, std::uint32_t{1}));
  expect_refused("lacks its 64-bit sizes", changed(a + 24, std::uint32_t{0xffffffff}));
  expect_refused("has no header where", changed(a + 42, std::uint32_t{1}));
  expect_refused("has no header where", changed(a + 42, std::uint32_t{0xfffffffe}));
  expect_refused("ends inside an entry", changed(b + 28, std::uint16_t{0xffff}));
  expect_refused("contradicts the directory", changed(b + 42, std::uint32_t{0}));
  expect_refused("contradicts the directory", changed(8, std::uint16_t{8}));
  expect_refused("contradicts the directory", changed(31, 'g'));

  std::string large = changed(a + 20, std::uint32_t{100000});
  put(large, a + 24, std::uint32_t{100000});
  expect_refused("leaves the file", large);
  std::string twice = changed(b + 46 + 2, 'a');  // the name of the second becomes f/a
  twice.replace(twice.find("f/b"), 3, "f/a");
  expect_refused("is there twice", twice);
}

TEST(Zip, LyingEndRecords) {
  const std::string good = make_archive();
  const std::size_t end = good.size() - zip::kEndBytes;
  const std::size_t end64 = end - zip::kLocator64Bytes - zip::kEnd64Bytes;
  const auto changed = [&](std::size_t at, auto value) {
    std::string out = good;
    put(out, at, value);
    return out;
  };
  expect_refused("contradict each other", changed(end + 10, std::uint16_t{3}));
  expect_refused("contradict each other", changed(end + 16, std::uint32_t{3}));
  expect_refused("not where it should be", changed(end - 12, std::uint64_t{1} << 63));
  expect_refused("one part of an archive", changed(end64 + 16, std::uint32_t{1}));
  expect_refused("one part of an archive", changed(end64 + 24, std::uint64_t{1}));
  // Now both records agree, but not with the file.
  std::string far = changed(end64 + 48, std::uint64_t{0xfffffff0});
  put(far, end + 16, std::uint32_t{0xfffffff0});
  expect_refused("leaves the file", far);
  std::string many = changed(end64 + 32, std::uint64_t{60000});
  put(many, end64 + 24, std::uint64_t{60000});
  put(many, end + 10, std::uint16_t{60000});
  expect_refused("more than fit", many);
  std::string few = changed(end64 + 32, std::uint64_t{1});
  put(few, end64 + 24, std::uint64_t{1});
  put(few, end + 10, std::uint16_t{1});
  expect_refused("holds more than it says", few);
}

// The second entry's header lies inside the first one's data: a quine-like bomb.
TEST(Zip, OverlappingEntries) {
  std::string archive = make_archive();
  const std::size_t a = record_at(archive, 0);
  const std::size_t b_header = archive.find("PK\x03\x04", 4);
  const auto a_data = static_cast<std::size_t>(
      read_zip_directory(as_bytes(archive), "input").at("f/a").data.data() -
      as_bytes(archive).data());
  const auto size = static_cast<std::uint32_t>(b_header + 40 - a_data);
  for (const std::size_t at : {a + 20, a + 24, std::size_t{18}, std::size_t{22}}) {
    put(archive, at, size);
  }
  expect_refused("overlap", archive);
}

}  // namespace
}  // namespace mamba3
