// Gradients of a golden's loss, by the plain recurrence and by mamba3_scan_backward.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/golden.h"
#include "mamba3/context.h"

namespace mamba3 {

// By the names of the file, without "grad.": in.* of all tokens, param.* summed over all sequences,
// state0.* of each. T double: the oracle. T float: the plain run of the tolerance rule.
using GoldenGradients = std::map<std::string, std::vector<double>>;

template <class T>
GoldenGradients plain_gradients(const Golden& golden);

extern template GoldenGradients plain_gradients<double>(const Golden&);
extern template GoldenGradients plain_gradients<float>(const Golden&);

// By the ops in fp32, all sequences packed; the two linears of a mixer by plain loops.
GoldenGradients op_gradients(const Golden& golden, Context& ctx);

}  // namespace mamba3
