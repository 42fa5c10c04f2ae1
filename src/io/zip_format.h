// Signatures and field positions of zip archives, for the reader and the writer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba3::zip {

inline constexpr std::uint32_t kLocalSignature = 0x04034b50;
inline constexpr std::uint32_t kEntrySignature = 0x02014b50;
inline constexpr std::uint32_t kEndSignature = 0x06054b50;
inline constexpr std::uint32_t kEnd64Signature = 0x06064b50;
inline constexpr std::uint32_t kLocator64Signature = 0x07064b50;

inline constexpr std::size_t kLocalBytes = 30;
inline constexpr std::size_t kEntryBytes = 46;
inline constexpr std::size_t kEndBytes = 22;
inline constexpr std::size_t kEnd64Bytes = 56;
inline constexpr std::size_t kLocator64Bytes = 20;

inline constexpr std::uint16_t kZip64Extra = 0x0001;
inline constexpr std::uint32_t kIn64 = 0xffffffff;   // the value is in the zip64 field
inline constexpr std::uint16_t kCountIn64 = 0xffff;  // the same for a 16-bit count
inline constexpr std::uint16_t kFlagEncrypted = 0x0001;
inline constexpr std::uint16_t kFlagDescriptor = 0x0008;  // sizes and CRC follow the data
inline constexpr std::uint16_t kFlagStrongCipher = 0x0040;
inline constexpr std::uint16_t kFlagUtf8 = 0x0800;
inline constexpr std::uint16_t kFlagMasked = 0x2000;  // header values hidden

}  // namespace mamba3::zip
