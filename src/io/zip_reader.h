// The directory of a zip archive whose entries are stored, not compressed: what torch.save writes.
// Entries are spans of the file, so an archive can never unfold to more than its own size.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace mamba3 {

struct ZipEntry {
  std::span<const std::byte> data;
  std::uint32_t crc = 0;  // as the directory says; see check_crc
};

using ZipDirectory = std::map<std::string, ZipEntry, std::less<>>;

// Refuses compressed and encrypted entries, entries that overlap or leave the file, entries whose
// local header contradicts the directory, equal names. Zip64 is understood.
ZipDirectory read_zip_directory(std::span<const std::byte> file, const std::string& origin);

void check_crc(const ZipEntry& entry, std::string_view name, const std::string& origin);

}  // namespace mamba3
