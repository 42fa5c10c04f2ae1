// The gradients in a model's golden.safetensors: those of its mean loss with respect to its
// parameters.
#pragma once

#include <filesystem>

#include "engine/verify.h"

namespace mamba3 {

// A file without any adds no case. The oracle always; one training pass on a CPU in fp32.
void verify_model_gradients(const std::filesystem::path& file, const VerifyOptions& options,
                            VerifyReport& report, Context& ctx);

}  // namespace mamba3
