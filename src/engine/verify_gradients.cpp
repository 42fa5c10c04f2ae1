#include "engine/verify_gradients.h"

#include <span>

#include "core/tolerance.h"
#include "engine/golden_gradients.h"

namespace mamba3 {
namespace {

double error_of(const std::vector<double>& got, const std::vector<double>& expected) {
  return largest_error(std::span<const double>(got), std::span<const double>(expected),
                       ErrorMetric::kRelative);
}

// A file without an initial state has no gradient of one.
bool is_absent(const std::string& name, const std::vector<double>& expected,
               const std::vector<double>& values) {
  return expected.empty() && (values.empty() || name.starts_with("state0."));
}

}  // namespace

void verify_gradients(const Golden& golden, const VerifyOptions& options, Context& ctx,
                      VerifyReport& report) {
  if (!golden.has_gradients()) return;
  const auto add = [&](const std::string& name, const char* path, const Comparison& c) {
    report.cases.push_back(
        {golden.file, "grad." + name + path, c.error, c.naive_error, c.bound, c.ok});
  };
  const GoldenGradients oracle = plain_gradients<double>(golden);
  for (const auto& [name, values] : oracle) {
    const std::vector<double>& expected = golden.at("grad." + name);
    if (is_absent(name, expected, values)) continue;
    add(name, " (oracle)", judge(error_of(values, expected), 0, kGoldenRounding));
  }
  if (options.dtype != ComputeDType::kF32) return;
  const GoldenGradients naive = plain_gradients<float>(golden);
  for (const auto& [name, values] : op_gradients(golden, ctx)) {
    const std::vector<double>& expected = golden.at("grad." + name);
    if (is_absent(name, expected, values)) continue;
    add(name, " (backward)",
        judge(error_of(values, expected), error_of(naive.at(name), oracle.at(name)),
              kGradientRounding));
  }
}

}  // namespace mamba3
