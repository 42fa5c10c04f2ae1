#include <algorithm>
#include <set>
#include <string_view>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/safetensors_header.h"
#include "io/tensor_copy.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

// The data must be one run of tensors without overlaps or holes: what a reader does not see could
// otherwise carry anything.
void check_layout(const std::vector<SafetensorsEntry>& entries, std::int64_t data_bytes,
                  const std::string& origin) {
  std::vector<const SafetensorsEntry*> order;
  order.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry* entry : order) {
    check_input(entry->begin == end, origin, ": tensor ", quote(entry->name), " begins at byte ",
                entry->begin, " of the data; expected ", end,
                ", where the one before it ends; the file is damaged");
    check_input(entry->end >= entry->begin && entry->end <= data_bytes, origin, ": tensor ",
                quote(entry->name), " has data_offsets [", entry->begin, ", ", entry->end,
                "]; expected them in order and at most ", data_bytes,
                ", the bytes that are there; the file is truncated or damaged");
    end = entry->end;
  }
  check_input(end == data_bytes, origin, " holds ", data_bytes, " bytes of data; expected ", end,
              " as its header says; the file is damaged");
}

StridedTensor describe(const SafetensorsEntry& entry, const std::byte* data,
                       const std::string& origin) {
  const std::int64_t elements = checked_elements(entry.shape);
  const std::int64_t bytes = multiply_sizes(elements, dtype_bytes(entry.dtype));
  check_input(bytes == entry.end - entry.begin, origin, ": tensor ", quote(entry.name), " ",
              dtype_name(entry.dtype), " ", shape_string(entry.shape), " has ",
              entry.end - entry.begin, " bytes of data; expected ",
              bytes < 0 ? std::string("a shape that fits in memory") : std::to_string(bytes),
              "; the file is damaged");
  return {data + entry.begin, entry.dtype, entry.shape, contiguous_strides(entry.shape)};
}

}  // namespace

TensorFile parse_safetensors(const std::shared_ptr<const MappedFile>& file) {
  constexpr std::int64_t kLengthBytes = 8;
  const std::string origin = quote(file->path().string());
  const std::span<const std::byte> bytes = file->bytes();
  const auto size = static_cast<std::int64_t>(bytes.size());
  check_input(size >= kLengthBytes + 2, origin, " has ", size,
              " bytes; expected a safetensors file: a length, a JSON header, data; the file is "
              "truncated or of another kind");
  const auto header_bytes = load_le<std::uint64_t>(bytes, 0);
  check_input(header_bytes <= static_cast<std::uint64_t>(size - kLengthBytes), origin,
              " says its header has ", header_bytes, " bytes; expected at most ",
              size - kLengthBytes,
              ", what follows in the file; the file is truncated or not a "
              "safetensors file");
  const auto data_begin = kLengthBytes + static_cast<std::int64_t>(header_bytes);
  const std::string_view text = text_of(bytes).substr(kLengthBytes, header_bytes);

  SafetensorsHeader header = parse_safetensors_header(text, origin);
  const std::int64_t data_bytes = size - data_begin;
  check_layout(header.entries, data_bytes, origin);
  TensorFile out;
  out.files.push_back(file);
  out.metadata = std::move(header.metadata);
  std::int64_t copied_bytes = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    const StridedTensor tensor = describe(entry, bytes.data() + data_begin, origin);
    out.tensors[entry.name] = place_tensor(tensor, entry.name, out, copied_bytes, data_bytes);
  }
  return out;
}

TensorFile read_safetensors(const std::filesystem::path& path) {
  return parse_safetensors(MappedFile::open(path));
}

}  // namespace mamba3
