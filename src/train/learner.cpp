#include "train/learner.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "ops/global_norm/global_norm.h"
#include "ops/round_bf16/round_bf16.h"

namespace mamba3 {
namespace {

constexpr std::size_t kStageBytes = std::size_t{4} << 20;
constexpr std::int64_t kMostPending = 1024;

// What a device leaves of a step, read in one piece.
struct DeviceFigures {
  double norm;
  CrossEntropySums sums[kMostPending];
};

Memory need_memory(std::size_t bytes, const std::shared_ptr<Gpu>& gpu) {
  Memory memory = allocate_memory(bytes, gpu);
  if (!memory) {
    fail(ErrorCode::kUnavailable, "no memory for ", bytes, " bytes of a training",
         gpu ? " on the GPU" : "", "; choose a smaller model");
  }
  return memory;
}

}  // namespace

template <class T>
std::span<const T> BatchStage::put(std::span<const T> numbers) {
  auto* to = reinterpret_cast<T*>(memory_.get() + used_bytes_);
  std::ranges::copy(numbers, to);
  used_bytes_ += (numbers.size_bytes() + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  return {to, numbers.size()};
}

TrainingBatch BatchStage::stage(const TrainingBatch& batch) {
  if (!gpu_) return batch;
  const std::size_t bytes = batch.ids.size_bytes() + batch.targets.size_bytes() +
                            batch.cu_seqlens.size_bytes() + batch.starts.size_bytes() +
                            batch.ends.size_bytes() + 5 * kCacheLineBytes;
  if (used_bytes_ + bytes > size_bytes_) {
    gpu_->synchronize();
    used_bytes_ = 0;
  }
  if (bytes > size_bytes_) {
    size_bytes_ = std::max(bytes, kStageBytes);
    memory_ = allocate_pinned(size_bytes_, gpu_);
    if (!memory_) {
      size_bytes_ = 0;
      fail(ErrorCode::kUnavailable, "no memory of the host for ", bytes, " bytes of a batch",
           "; choose a smaller batch");
    }
  }
  TrainingBatch out = batch;
  out.ids = put(batch.ids);
  out.targets = put(batch.targets);
  out.cu_seqlens = put(batch.cu_seqlens);
  out.starts = put(batch.starts);
  out.ends = put(batch.ends);
  return out;
}

Learner::Learner(const ModelConfig& config, const LossOptions& loss,
                 const OptimizerOptions& optimizer, Context& ctx, std::int64_t lanes)
    : config_(config),
      loss_(loss),
      ctx_(ctx),
      weights_(config, ctx.gpu()),
      gradients_(config, ctx.gpu()),
      optimizer_(config, optimizer, ctx.gpu()),
      stage_(ctx.gpu()),
      device_figures_(need_memory(sizeof(DeviceFigures), ctx.gpu())) {
  if (loss.compute == Compute::kBf16) {
    const std::size_t bytes = weights_.group(ParameterGroup::kMatrices).size() * sizeof(Bf16);
    rounded_ = need_memory(bytes, ctx.gpu());
    set_zero(ctx.gpu().get(), rounded_.get(), bytes);
  }
  bound_ = view_weights(config_, pass_tensors());
  if (lanes > 0) lanes_.emplace(config, lanes, ctx.gpu());
}

std::map<std::string, TensorRef> Learner::pass_tensors() const {
  std::map<std::string, TensorRef> tensors = weights_.tensors();
  if (!rounded_) return tensors;
  const float* first = weights_.group(ParameterGroup::kMatrices).data();
  for (const TensorSpec& spec : tensor_specs(config_)) {
    if (!spec.large) continue;
    const auto at = static_cast<std::size_t>(weights_.at(spec.name) - first);
    tensors[spec.name] = {rounded_.get() + at * sizeof(Bf16), DType::kBf16, spec.shape};
  }
  return tensors;
}

void Learner::assign(const std::map<std::string, TensorRef>& weights) {
  weights_.assign(weights);
  if (!rounded_) return;
  const std::span<const float> matrices = weights_.group(ParameterGroup::kMatrices);
  round_bf16({std::ssize(matrices), matrices.data(), reinterpret_cast<Bf16*>(rounded_.get())},
             ctx_);
}

void Learner::resume(std::int64_t steps, const std::map<std::string, TensorRef>& moments,
                     const std::map<std::string, TensorRef>& states) {
  optimizer_.resume(steps, moments);
  if (lanes_) lanes_->assign(states);
}

void Learner::clear() {
  has_gradients_ = false;
  pending_ = 0;
  sums_ = {};
}

CrossEntropySums* Learner::next_sums() {
  if (pending_ == kMostPending) read_sums();
  return reinterpret_cast<DeviceFigures*>(device_figures_.get())->sums + pending_++;
}

TrainingBatch Learner::stage(const TrainingBatch& batch) {
  TrainingBatch out = stage_.stage(batch);
  if (lanes_ && !batch.starts.empty()) out.lanes = &*lanes_;
  return out;
}

void Learner::add(const TrainingBatch& batch, double grad_scale) {
  LossOptions options = loss_;
  options.grad_scale = grad_scale;
  options.accumulate_gradients = has_gradients_;
  loss_and_gradients(config_, bound_, stage(batch), options, gradients_, next_sums(), ctx_);
  has_gradients_ = true;
}

void Learner::measure(const TrainingBatch& batch) {
  loss_of(config_, bound_, stage(batch), loss_, next_sums(), ctx_);
}

void Learner::read_sums() {
  DeviceFigures read;
  const auto bytes = sizeof(double) + static_cast<std::size_t>(pending_) * sizeof(CrossEntropySums);
  copy_to_host(ctx_.gpu().get(), &read, device_figures_.get(), bytes);
  stage_.reuse();
  norm_ = read.norm;
  for (const CrossEntropySums& sums : std::span(read.sums, static_cast<std::size_t>(pending_))) {
    sums_.loss += sums.loss;
    sums_.squared_z += sums.squared_z;
    sums_.rows += sums.rows;
    sums_.correct += sums.correct;
  }
  pending_ = 0;
}

CrossEntropySums Learner::sums() {
  read_sums();
  return std::exchange(sums_, {});
}

Learner::Figures Learner::figures() {
  const std::span<const float> all = gradients_.all();
  auto* figures = reinterpret_cast<DeviceFigures*>(device_figures_.get());
  global_norm({{&all, 1}, &figures->norm}, ctx_);
  const CrossEntropySums found = sums();
  return {found, norm_};
}

// A pass begins with copies to the GPU, which wait for these kernels: none of its own reads weights
// ahead of them.
void Learner::update(double norm, double rate) {
  optimizer_.step(gradients_, norm, rate, weights_, reinterpret_cast<Bf16*>(rounded_.get()), ctx_);
  if (lanes_) lanes_->advance();
}

}  // namespace mamba3
