#include "io/tensor_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "core/check.h"
#include "core/quote.h"
#include "io/tensor_copy.h"

namespace mamba3 {
namespace {

bool is_utf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

}  // namespace

void check_writable(const std::vector<NamedTensor>& tensors) {
  std::set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    check_input(!name.empty() && name != "__metadata__" && is_utf8(name), "a tensor is named ",
                quote(name), "; expected a name in UTF-8 that is not __metadata__; rename it");
    check_input(names.insert(name).second, "two tensors are named ", quote(name),
                "; expected different names; rename one");
    const std::int64_t elements = checked_elements(tensor.shape);
    check_input(elements == 0 || (elements > 0 && tensor.data != nullptr), "tensor ", quote(name),
                " ", shape_string(tensor.shape),
                " cannot be written; expected extents of 0 or more "
                "and data; give both");
  }
}

void write_tensor_data(AtomicFile& file, std::span<const std::byte> data, WriteProgress& progress) {
  constexpr std::size_t kChunkBytes = std::size_t{16} << 20;  // between two reports
  while (!data.empty()) {
    const auto chunk = data.first(std::min(data.size(), kChunkBytes));
    file.write(chunk);
    progress.add(static_cast<std::int64_t>(chunk.size()));
    data = data.subspan(chunk.size());
  }
}

}  // namespace mamba3
