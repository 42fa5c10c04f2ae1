#include "cli/inspect_gpu.h"

#include "core/check.h"
#include "model/mixer.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3::cli {
namespace {

constexpr int kHopper = 90, kHopperMultiprocessors = 132;
constexpr const char* kLinear =
    "own kernels for the few rows of a step and around SwiGLU of prompts, cuBLASLt for the rest";

Json path_json(const KernelPath& path) {
  return {{"path", path_name(path)}, {"because", path.because}};
}

std::string path_text(const KernelPath& path) {
  return path_name(path) + " (" + path.because + ")";
}

std::string card_text(const GpuPlan& plan) {
  if (!plan.card) return "no GPU here; on an H100 it would be";
  const int capability = plan.card->compute_capability;
  return str(plan.card->name, ", compute capability ", capability / 10, ".", capability % 10);
}

std::string fit_text(const GpuPlan& plan) {
  if (!plan.card) return "";
  const std::string free_bytes = human_bytes(static_cast<double>(plan.card->free_bytes));
  const std::string fits = plan.largest_batch > 0 ? str("a batch of ", plan.largest_batch, " fits")
                                                  : std::string("not even one sequence fits");
  return str("  the card    has ", free_bytes, " free: ", fits, "\n");
}

}  // namespace

GpuPlan plan_for_gpu(const ModelSize& size, ComputeDType compute, std::int64_t batch, int index) {
  GpuPlan plan;
  if (gpu_count() > 0) plan.card = gpu_info(index);
  const int capability = plan.card ? plan.card->compute_capability : kHopper;
  const Mamba3Dims dims = mixer_dims(size.config);
  plan.scan = mamba3_scan_path(dims, capability, compute == ComputeDType::kBf16);
  plan.step = mamba3_step_path(dims, capability);
  const int multiprocessors = plan.card ? plan.card->multiprocessors : kHopperMultiprocessors;
  plan.need = memory_needed(size, batch, multiprocessors);
  plan.logits_bytes = batch * size.config.padded_vocab() * std::int64_t{sizeof(float)};
  if (plan.card) {
    plan.largest_batch = largest_batch(size, plan.card->free_bytes, multiprocessors);
  }
  return plan;
}

std::string path_name(const KernelPath& path) {
  if (path.none) return "none";
  if (path.mma) return "general on tensor cores";
  return path.tuned ? "tuned" : "general";
}

Json gpu_json(const GpuPlan& plan) {
  Json json;
  json["name"] = plan.card ? Json(plan.card->name) : Json(nullptr);
  json["compute_capability"] = plan.card ? Json(plan.card->compute_capability) : Json(nullptr);
  json["free_bytes"] = plan.card ? Json(plan.card->free_bytes) : Json(nullptr);
  json["largest_batch"] = plan.card ? Json(plan.largest_batch) : Json(nullptr);
  json["mamba3_scan"] = path_json(plan.scan);
  json["mamba3_step"] = path_json(plan.step);
  json["linear"] = {{"path", "tuned"}, {"because", kLinear}};
  return json;
}

Json gpu_memory_json(const GpuPlan& plan, std::int64_t context) {
  return {{"batch", plan.need.batch},
          {"context", context},
          {"weights_bytes", plan.need.weights_bytes},
          {"states_bytes", plan.need.states_bytes},
          {"logits_bytes", plan.logits_bytes},
          {"workspace_bytes", plan.need.workspace_bytes},
          {"total_bytes", plan.need.total_bytes()}};
}

std::string gpu_text(const GpuPlan& plan, std::int64_t context) {
  const auto bytes = [](std::int64_t count) { return human_bytes(static_cast<double>(count)); };
  return str("GPU           ", card_text(plan), "\n",                           //
             "  prompts     mamba3_scan, ", path_text(plan.scan), "\n",         //
             "  decoding    mamba3_step, ", path_text(plan.step), "\n",         //
             "  linears     ", kLinear, "\n",                                   //
             "\nmemory for ", plan.need.batch, " sequence(s) on a GPU\n",       //
             "  weights     ", bytes(plan.need.weights_bytes), "\n",            //
             "  states      ", bytes(plan.need.states_bytes),                   //
             ", the same after 1 and after ", context, " tokens\n",             //
             "  workspace   ", bytes(plan.need.workspace_bytes), " at most\n",  //
             "  together    ", bytes(plan.need.total_bytes()), "\n", fit_text(plan));
}

}  // namespace mamba3::cli
