// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mamba3 {

// Adds grad_y [ids, d] to grad_table [v, d], both contiguous.
template <class T>
void embedding_backward_ref(std::span<const std::int32_t> ids, const std::vector<T>& grad_y,
                            std::int64_t d, std::vector<T>& grad_table) {
  for (std::size_t row = 0; row < ids.size(); ++row) {
    for (std::int64_t i = 0; i < d; ++i) {
      grad_table[ids[row] * d + i] += grad_y[static_cast<std::int64_t>(row) * d + i];
    }
  }
}

}  // namespace mamba3
