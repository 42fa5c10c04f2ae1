#include "io/zip_writer.h"

#include <algorithm>
#include <concepts>

#include "io/crc32.h"

namespace mamba3 {
namespace {

constexpr std::uint64_t kAlignBytes = 64;
constexpr std::uint16_t kPaddingExtra = 0x4246;  // "FB", which torch uses for the same purpose
constexpr std::size_t kExtraHeaderBytes = 4;

template <std::unsigned_integral T>
void append(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i));
}
void append16(std::string& out, std::uint64_t value) {
  append(out, static_cast<std::uint16_t>(value));
}
void append32(std::string& out, std::uint64_t value) {
  append(out, static_cast<std::uint32_t>(value));
}

// An extra field of the 64-bit values; empty when there are none.
std::string zip64_extra(const std::vector<std::uint64_t>& values) {
  std::string out;
  if (values.empty()) return out;
  append16(out, zip::kZip64Extra);
  append16(out, 8 * values.size());
  for (const std::uint64_t value : values) append(out, value);
  return out;
}

// The fields that a local header and a directory record have in common, from "version needed" on.
std::string common_fields(std::uint64_t size, bool large, std::uint32_t crc) {
  std::string out;
  append16(out, large ? 45 : 20);  // version needed
  append16(out, zip::kFlagUtf8);
  append16(out, 0);  // stored
  append32(out, 0);  // no time
  append32(out, crc);
  append32(out, large ? zip::kIn64 : size);
  append32(out, large ? zip::kIn64 : size);
  return out;
}

}  // namespace

void ZipWriter::write(const std::string& bytes) {
  file_.write(bytes);
  offset_ += bytes.size();
}

void ZipWriter::add(const std::string& name, std::span<const std::byte> data,
                    WriteProgress& progress) {
  const std::uint64_t header_offset = offset_;
  const std::uint64_t size = data.size();
  const bool large = size >= limit_;
  const bool far = header_offset >= limit_;
  const std::string common = common_fields(size, large, crc32(data));

  std::string extra = zip64_extra(large ? std::vector{size, size} : std::vector<std::uint64_t>{});
  const std::uint64_t unpadded =
      offset_ + zip::kLocalBytes + name.size() + extra.size() + kExtraHeaderBytes;
  const std::uint64_t padding = (kAlignBytes - unpadded % kAlignBytes) % kAlignBytes;
  append16(extra, kPaddingExtra);
  append16(extra, padding);
  extra.append(padding, 'Z');

  std::string header;
  append32(header, zip::kLocalSignature);
  header += common;
  append16(header, name.size());
  append16(header, extra.size());
  write(header + name + extra);
  write_tensor_data(file_, data, progress);
  offset_ += size;

  std::vector<std::uint64_t> wide;
  if (large) wide = {size, size};
  if (far) wide.push_back(header_offset);
  const std::string wide_extra = zip64_extra(wide);
  append32(directory_, zip::kEntrySignature);
  append16(directory_, 45);  // version made by
  directory_ += common;
  append16(directory_, name.size());
  append16(directory_, wide_extra.size());
  append16(directory_, 0);  // no comment
  append16(directory_, 0);  // first disk
  append16(directory_, 0);  // internal attributes
  append32(directory_, 0);  // external attributes
  append32(directory_, far ? zip::kIn64 : header_offset);
  directory_ += name + wide_extra;
  ++entries_;
}

void ZipWriter::finish() {
  const std::uint64_t begin = offset_;
  const std::uint64_t bytes = directory_.size();
  write(directory_);

  std::string end;  // with 64-bit values, always: one form is simpler than two
  append32(end, zip::kEnd64Signature);
  append(end, std::uint64_t{zip::kEnd64Bytes - 12});
  append16(end, 45);  // version made by
  append16(end, 45);  // version needed
  append32(end, 0);   // this disk
  append32(end, 0);   // disk of the directory
  append(end, entries_);
  append(end, entries_);
  append(end, bytes);
  append(end, begin);

  append32(end, zip::kLocator64Signature);
  append32(end, 0);  // disk of the record above
  append(end, offset_);
  append32(end, 1);  // disks

  append32(end, zip::kEndSignature);
  append16(end, 0);  // this disk
  append16(end, 0);  // disk of the directory
  append16(end, std::min<std::uint64_t>(entries_, zip::kCountIn64));
  append16(end, std::min<std::uint64_t>(entries_, zip::kCountIn64));
  append32(end, bytes >= limit_ ? zip::kIn64 : bytes);
  append32(end, begin >= limit_ ? zip::kIn64 : begin);
  append16(end, 0);  // no comment
  write(end);
}

}  // namespace mamba3
