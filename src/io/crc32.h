// The checksum of zip archives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mamba3 {

// CRC-32 (reflected polynomial 0xedb88320). `before` continues the checksum of earlier bytes.
std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0);

}  // namespace mamba3
