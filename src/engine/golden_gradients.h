// Gradients of a golden's loss by the plain recurrence.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/golden.h"

namespace mamba3 {

// By the names of the file, without "grad.": in.* of all tokens, param.* summed over all sequences,
// state0.* of each. T double: the oracle. T float: the plain run of the tolerance rule.
using GoldenGradients = std::map<std::string, std::vector<double>>;

template <class T>
GoldenGradients plain_gradients(const Golden& golden);

extern template GoldenGradients plain_gradients<double>(const Golden&);
extern template GoldenGradients plain_gradients<float>(const Golden&);

}  // namespace mamba3
