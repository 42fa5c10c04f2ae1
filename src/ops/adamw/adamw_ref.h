// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <vector>

#include "ops/adamw/adamw.h"

namespace mamba3 {

// The numbers of `args` on these vectors; its pointers are not read.
template <class T>
void adamw_ref(const AdamwArgs& args, const std::vector<T>& grad, std::vector<T>& weights,
               std::vector<T>& first, std::vector<T>& second);

extern template void adamw_ref(const AdamwArgs&, const std::vector<double>&, std::vector<double>&,
                               std::vector<double>&, std::vector<double>&);
extern template void adamw_ref(const AdamwArgs&, const std::vector<float>&, std::vector<float>&,
                               std::vector<float>&, std::vector<float>&);

}  // namespace mamba3
