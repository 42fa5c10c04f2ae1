// The ways to compute a golden's tokens: the plain recurrence, and the paths that models use. All
// take parts of sequences with the states before them and give outputs and the states after them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/golden.h"
#include "mamba3/context.h"
#include "model/reference.h"
#include "ops/linear/linear.h"
#include "ops/mamba3_scan/mamba3_authors_ref.h"

namespace mamba3 {

// Rows [begin, end) of one sequence.
struct GoldenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

struct GoldenPart {
  std::vector<double> y;  // rows of all ranges, one after the other
  std::vector<Mamba3RefState<double>> states;
};

// T double: the oracle. T float: the plain run of the tolerance rule.
template <class T>
GoldenPart run_plain(const Golden& golden, std::span<const GoldenRange> ranges,
                     std::span<const Mamba3RefState<double>> start, PlainRounding rounding);

extern template GoldenPart run_plain<double>(const Golden&, std::span<const GoldenRange>,
                                             std::span<const Mamba3RefState<double>>,
                                             PlainRounding);
extern template GoldenPart run_plain<float>(const Golden&, std::span<const GoldenRange>,
                                            std::span<const Mamba3RefState<double>>, PlainRounding);

// As the authors' kernels round: what their roundings allow.
GoldenPart run_authors(const Golden& golden, std::span<const GoldenRange> ranges,
                       std::span<const Mamba3RefState<double>> start, AuthorsPath path);

// mamba3_step, a token of every range at a time.
GoldenPart run_step(const Golden& golden, std::span<const GoldenRange> ranges,
                    std::span<const Mamba3RefState<double>> start, Compute compute, Context& ctx);
// mamba3_scan, all ranges packed into one call.
GoldenPart run_scan(const Golden& golden, std::span<const GoldenRange> ranges,
                    std::span<const Mamba3RefState<double>> start, Compute compute, Context& ctx);

}  // namespace mamba3
