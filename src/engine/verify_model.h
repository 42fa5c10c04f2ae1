// The golden.safetensors of a model's folder, beside its config.json and weights.
#pragma once

#include <filesystem>

#include "engine/verify.h"

namespace mamba3 {

void verify_model_golden(const std::filesystem::path& file, const VerifyOptions& options,
                         VerifyReport& report, Context& ctx);

}  // namespace mamba3
