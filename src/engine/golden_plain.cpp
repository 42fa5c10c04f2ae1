// The plain run: sequential, no code of the fast paths.
#include <algorithm>
#include <cmath>

#include "engine/golden_inputs.h"

namespace mamba3 {
namespace {

// The plain loop over ranges; `scan` gives the y of one.
template <class T, class Scan>
GoldenPart run_ranges(const Golden& golden, std::span<const GoldenRange> ranges,
                      std::span<const Mamba3RefState<double>> start, bool bf16_linears,
                      Mamba3RefInputs<T> in, const Scan& scan) {
  GoldenPart out;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    take_tokens(golden, ranges[i], bf16_linears, in);
    Mamba3RefState<T> state = cast_state<T>(start[i]);
    std::vector<T> y = scan(in, state);
    if (golden.mixer) {
      y = multiply(y, cast<T>(golden.at("param.out_proj.weight")), golden.inner(), bf16_linears);
    }
    out.y.insert(out.y.end(), y.begin(), y.end());
    out.states.push_back(cast_state<double>(state));
  }
  return out;
}

}  // namespace

template <class T>
GoldenPart run_plain(const Golden& golden, std::span<const GoldenRange> ranges,
                     std::span<const Mamba3RefState<double>> start, PlainRounding rounding) {
  Mamba3RefInputs<T> inputs = layer_of<T>(golden);
  inputs.bf16_products = rounding.scan;
  return run_ranges<T>(golden, ranges, start, rounding.linears, std::move(inputs),
                       mamba3_scan_ref<T>);
}

GoldenPart run_authors(const Golden& golden, std::span<const GoldenRange> ranges,
                       std::span<const Mamba3RefState<double>> start, AuthorsPath path) {
  return run_ranges<float>(golden, ranges, start, true, layer_of<float>(golden),
                           [path](const Mamba3RefInputs<float>& in, Mamba3RefState<float>& state) {
                             return mamba3_authors_ref(in, state, path);
                           });
}

template GoldenPart run_plain<double>(const Golden&, std::span<const GoldenRange>,
                                      std::span<const Mamba3RefState<double>>, PlainRounding);
template GoldenPart run_plain<float>(const Golden&, std::span<const GoldenRange>,
                                     std::span<const Mamba3RefState<double>>, PlainRounding);

}  // namespace mamba3
