#include "io/tensor_copy.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"

namespace mamba3 {
namespace {

bool is_contiguous(const StridedTensor& tensor) {
  std::int64_t step = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.stride[i] != step) return false;
    step *= tensor.shape[i];
  }
  return true;
}

void copy_strided(const StridedTensor& tensor, std::int64_t elements, std::byte* out) {
  const auto size = static_cast<std::size_t>(dtype_bytes(tensor.dtype));
  std::vector<std::int64_t> index(tensor.shape.size(), 0);
  std::int64_t offset = 0;
  for (std::int64_t i = 0; i < elements; ++i) {
    std::memcpy(out + static_cast<std::size_t>(i) * size,
                tensor.data + static_cast<std::size_t>(offset) * size, size);
    for (std::size_t d = index.size(); d-- > 0;) {  // the next index, last dimension first
      offset += tensor.stride[d];
      if (++index[d] < tensor.shape[d]) break;
      offset -= tensor.stride[d] * tensor.shape[d];
      index[d] = 0;
    }
  }
}

}  // namespace

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> stride(shape.size());
  std::int64_t step = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    stride[i] = step;
    step *= shape[i];
  }
  return stride;
}

std::int64_t checked_elements(const std::vector<std::int64_t>& shape) {
  // Extents of zero are left out first: what the others multiply to must fit in any order.
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count = multiply_sizes(count, extent == 0 ? 1 : extent);
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  return count >= 0 && empty ? 0 : count;
}

TensorRef place_tensor(const StridedTensor& tensor, const std::string& name, TensorFile& out,
                       std::int64_t& copied_bytes, std::int64_t most_bytes) {
  const std::int64_t size = dtype_bytes(tensor.dtype);
  const std::int64_t elements = checked_elements(tensor.shape);
  TensorRef ref{tensor.data, tensor.dtype, tensor.shape};
  const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % size == 0;
  if (elements == 0 || (aligned && is_contiguous(tensor))) return ref;

  const std::int64_t bytes = multiply_sizes(elements, size);
  check_input(bytes >= 0 && bytes <= most_bytes - copied_bytes, "tensor ", quote(name), " ",
              shape_string(tensor.shape), " and others like it unfold to more than the file's ",
              most_bytes,
              " bytes; expected tensors no larger than what is stored; save them "
              "contiguous");
  copied_bytes += bytes;
  std::shared_ptr<std::byte[]> copy(new std::byte[static_cast<std::size_t>(bytes)]);
  if (is_contiguous(tensor)) {
    std::memcpy(copy.get(), tensor.data, static_cast<std::size_t>(bytes));
  } else {
    copy_strided(tensor, elements, copy.get());
  }
  ref.data = copy.get();
  out.copies.push_back(std::move(copy));
  return ref;
}

}  // namespace mamba3
