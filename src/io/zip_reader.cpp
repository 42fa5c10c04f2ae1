#include "io/zip_reader.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/crc32.h"
#include "io/zip_format.h"

namespace mamba3 {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::uint64_t kMostEntries = std::uint64_t{1} << 19;

// Where the directory is, and how many entries it has.
struct End {
  std::uint64_t entries = 0;
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::uint64_t limit = 0;  // the directory ends at or before this offset
};

// A directory record with zip64 values put in.
struct Record {
  std::string_view name;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t full_bytes = 0;
  std::uint64_t header = 0;  // offset of the local header
};

[[noreturn]] void refuse(const std::string& origin, const std::string& found) {
  fail(ErrorCode::kBadInput, origin, ": ", found,
       "; expected a zip archive as torch.save writes it; the file is truncated, damaged or of "
       "another kind");
}

// The end record stands last, before a comment of the length that it names.
std::size_t find_end(Bytes file, const std::string& origin) {
  if (file.size() >= zip::kEndBytes) {
    const std::size_t last = file.size() - zip::kEndBytes;
    const std::size_t first = last > 0xffff ? last - 0xffff : 0;
    for (std::size_t at = last + 1; at-- > first;) {
      if (load_le<std::uint32_t>(file, at) == zip::kEndSignature &&
          load_le<std::uint16_t>(file, at + 20) == last - at) {
        return at;
      }
    }
  }
  refuse(origin, "the zip directory at the end of the file is not there");
}

// A 32-bit value must be the 64-bit one, or say that it does not fit.
void check_same(std::uint64_t small, std::uint64_t small_in_64, std::uint64_t value,
                const std::string& origin) {
  if (small != small_in_64 && small != value) {
    refuse(origin, "its two end records contradict each other");
  }
}

End read_end(Bytes file, const std::string& origin) {
  const std::size_t at = find_end(file, origin);
  const auto entries = load_le<std::uint16_t>(file, at + 10);
  End end{entries, load_le<std::uint32_t>(file, at + 16), load_le<std::uint32_t>(file, at + 12),
          at};
  std::uint64_t entries_here = load_le<std::uint16_t>(file, at + 8);
  std::uint64_t disks = load_le<std::uint16_t>(file, at + 4) + load_le<std::uint16_t>(file, at + 6);
  const bool has_locator =
      at >= zip::kLocator64Bytes &&
      load_le<std::uint32_t>(file, at - zip::kLocator64Bytes) == zip::kLocator64Signature;
  if (has_locator) {
    const std::size_t locator = at - zip::kLocator64Bytes;
    const auto at64 = load_le<std::uint64_t>(file, locator + 8);
    if (locator < zip::kEnd64Bytes || at64 > locator - zip::kEnd64Bytes ||
        load_le<std::uint32_t>(file, at64) != zip::kEnd64Signature) {
      refuse(origin, "its zip64 end record is not where it should be");
    }
    const End small = end;
    end = {load_le<std::uint64_t>(file, at64 + 32), load_le<std::uint64_t>(file, at64 + 48),
           load_le<std::uint64_t>(file, at64 + 40), at64};
    check_same(small.entries, zip::kCountIn64, end.entries, origin);
    check_same(small.begin, zip::kIn64, end.begin, origin);
    check_same(small.bytes, zip::kIn64, end.bytes, origin);
    entries_here = load_le<std::uint64_t>(file, at64 + 24);
    disks = std::uint64_t{load_le<std::uint32_t>(file, at64 + 16)} +
            load_le<std::uint32_t>(file, at64 + 20);
  }
  if (disks != 0 || entries_here != end.entries) {
    refuse(origin, "it is one part of an archive in several files");
  }
  if (end.begin > end.limit || end.bytes > end.limit - end.begin) {
    refuse(origin, "its zip directory leaves the file");
  }
  if (end.entries > kMostEntries || end.entries > end.bytes / zip::kEntryBytes) {
    refuse(origin, str("it says it has ", end.entries, " entries, more than fit"));
  }
  return end;
}

// The zip64 values of an extra field; empty when it has none.
Bytes find_zip64(Bytes extra) {
  while (extra.size() >= 4) {
    const auto id = load_le<std::uint16_t>(extra, 0);
    const std::size_t bytes = load_le<std::uint16_t>(extra, 2);
    if (bytes > extra.size() - 4) return {};
    if (id == zip::kZip64Extra) return extra.subspan(4, bytes);
    extra = extra.subspan(4 + bytes);
  }
  return {};
}

// Replaces `value` by the next zip64 value when it says that it is there; false when it is not.
bool take_zip64(std::uint64_t& value, Bytes& zip64) {
  if (value != zip::kIn64) return true;
  if (zip64.size() < 8) return false;
  value = load_le<std::uint64_t>(zip64, 0);
  zip64 = zip64.subspan(8);
  return true;
}

void check_supported(const Record& record, const std::string& origin) {
  const std::string entry = "zip entry " + quote(record.name);
  if (record.flags & (zip::kFlagEncrypted | zip::kFlagStrongCipher | zip::kFlagMasked)) {
    refuse(origin, entry + " is encrypted");
  }
  if (record.method != 0) {
    refuse(origin, entry + str(" is compressed (method ", record.method,
                               record.method == 8 ? ", deflate)" : ")"));
  }
  if (record.stored_bytes != record.full_bytes) {
    refuse(origin, entry + str(" has two sizes, ", record.stored_bytes, " and ", record.full_bytes,
                               " bytes"));
  }
}

// Reads the record at the start of `directory` and moves past it.
Record take_record(Bytes& directory, const std::string& origin) {
  if (directory.size() < zip::kEntryBytes ||
      load_le<std::uint32_t>(directory, 0) != zip::kEntrySignature) {
    refuse(origin, "its zip directory is damaged");
  }
  const std::size_t name_bytes = load_le<std::uint16_t>(directory, 28);
  const std::size_t extra_bytes = load_le<std::uint16_t>(directory, 30);
  const std::size_t bytes =
      zip::kEntryBytes + name_bytes + extra_bytes + load_le<std::uint16_t>(directory, 32);
  if (bytes > directory.size()) refuse(origin, "its zip directory ends inside an entry");

  Record record;
  record.name = text_of(directory.subspan(zip::kEntryBytes, name_bytes));
  record.flags = load_le<std::uint16_t>(directory, 8);
  record.method = load_le<std::uint16_t>(directory, 10);
  record.crc = load_le<std::uint32_t>(directory, 16);
  record.stored_bytes = load_le<std::uint32_t>(directory, 20);
  record.full_bytes = load_le<std::uint32_t>(directory, 24);
  record.header = load_le<std::uint32_t>(directory, 42);
  Bytes zip64 = find_zip64(directory.subspan(zip::kEntryBytes + name_bytes, extra_bytes));
  if (!take_zip64(record.full_bytes, zip64) || !take_zip64(record.stored_bytes, zip64) ||
      !take_zip64(record.header, zip64)) {
    refuse(origin, "zip entry " + quote(record.name) + " lacks its 64-bit sizes");
  }
  check_supported(record, origin);
  directory = directory.subspan(bytes);
  return record;
}

// Compares the local header with the directory, so that no reader of the same file sees other data
// than this one, and returns the offset of the data.
std::uint64_t check_local_header(Bytes file, const Record& record, std::uint64_t limit,
                                 const std::string& origin) {
  const std::string entry = "zip entry " + quote(record.name);
  if (record.header > limit || limit - record.header < zip::kLocalBytes ||
      load_le<std::uint32_t>(file, record.header) != zip::kLocalSignature) {
    refuse(origin, entry + " has no header where the directory says");
  }
  const Bytes header = file.subspan(record.header, limit - record.header);
  const std::size_t name_bytes = load_le<std::uint16_t>(header, 26);
  const std::size_t extra_bytes = load_le<std::uint16_t>(header, 28);
  const std::size_t before_data = zip::kLocalBytes + name_bytes + extra_bytes;
  if (before_data > header.size() || record.full_bytes > header.size() - before_data) {
    refuse(origin, entry + str(" says it has ", record.full_bytes, " bytes and leaves the file"));
  }
  const auto flags = load_le<std::uint16_t>(header, 6);
  std::uint64_t stored_bytes = load_le<std::uint32_t>(header, 18);
  std::uint64_t full_bytes = load_le<std::uint32_t>(header, 22);
  Bytes zip64 = find_zip64(header.subspan(zip::kLocalBytes + name_bytes, extra_bytes));
  const bool readable = take_zip64(full_bytes, zip64) && take_zip64(stored_bytes, zip64);
  // With a descriptor after the data, the header may leave these three at zero.
  const bool may_be_zero = (flags & zip::kFlagDescriptor) != 0;
  const auto agrees = [&](std::uint64_t here, std::uint64_t there) {
    return here == there || (may_be_zero && here == 0);
  };
  if (flags != record.flags || load_le<std::uint16_t>(header, 8) != record.method ||
      text_of(header.subspan(zip::kLocalBytes, name_bytes)) != record.name || !readable ||
      !agrees(stored_bytes, record.stored_bytes) || !agrees(full_bytes, record.full_bytes) ||
      !agrees(load_le<std::uint32_t>(header, 14), record.crc)) {
    refuse(origin, entry + " has a header that contradicts the directory");
  }
  return record.header + before_data;
}

}  // namespace

ZipDirectory read_zip_directory(std::span<const std::byte> file, const std::string& origin) {
  const End end = read_end(file, origin);
  Bytes directory = file.subspan(end.begin, end.bytes);
  struct Range {
    std::uint64_t begin;
    std::uint64_t end;
    std::string_view name;
  };
  std::vector<Range> ranges;
  ZipDirectory out;
  for (std::uint64_t i = 0; i < end.entries; ++i) {
    const Record record = take_record(directory, origin);
    const std::uint64_t data = check_local_header(file, record, end.begin, origin);
    ranges.push_back({record.header, data + record.full_bytes, record.name});
    const ZipEntry entry{file.subspan(data, record.full_bytes), record.crc};
    if (!out.emplace(record.name, entry).second) {
      refuse(origin, "zip entry " + quote(record.name) + " is there twice");
    }
  }
  if (!directory.empty()) refuse(origin, "its zip directory holds more than it says");
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) {
      refuse(origin, "zip entries " + quote(ranges[i - 1].name) + " and " + quote(ranges[i].name) +
                         " overlap");
    }
  }
  return out;
}

void check_crc(const ZipEntry& entry, std::string_view name, const std::string& origin) {
  if (crc32(entry.data) != entry.crc) {
    refuse(origin, "zip entry " + quote(name) + " does not match its checksum");
  }
}

}  // namespace mamba3
