#include "engine/verify_gradients.h"

#include <span>

#include "core/tolerance.h"
#include "engine/golden_gradients.h"

namespace mamba3 {

void verify_gradients(const Golden& golden, VerifyReport& report) {
  if (!golden.has_gradients()) return;
  for (const auto& [name, values] : plain_gradients<double>(golden)) {
    const std::vector<double>& expected = golden.at("grad." + name);
    // A file without an initial state has no gradient of one.
    if (expected.empty() && (values.empty() || name.starts_with("state0."))) continue;
    const double error = largest_error(std::span<const double>(values),
                                       std::span<const double>(expected), ErrorMetric::kRelative);
    const Comparison c = judge(error, 0, kGoldenRounding);
    report.cases.push_back(
        {golden.file, "grad." + name + " (oracle)", c.error, c.naive_error, c.bound, c.ok});
  }
}

}  // namespace mamba3
