#include "engine/verify_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "core/check.h"
#include "core/tolerance.h"
#include "engine/checkpoint_files.h"
#include "engine/verify_model_gradients.h"
#include "io/tensor_file.h"
#include "model/reference.h"

namespace mamba3 {
namespace {

struct ModelGolden {
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  std::vector<std::int32_t> ids;  // [b, t]
  std::vector<double> logits;     // [b, t, padded vocabulary]
  double loss = 0;                // over all padded columns
  double loss_true_vocab = 0;
};

const TensorRef& find(const TensorFile& file, const std::string& name, DType dtype,
                      const std::string& origin) {
  const auto it = file.tensors.find(name);
  check_input(it != file.tensors.end() && it->second.dtype == dtype, origin, " has no tensor ",
              name, " of type ", dtype_name(dtype), "; expected a golden file of a model");
  return it->second;
}

double read_number(const TensorFile& file, const std::string& name, const std::string& origin) {
  const TensorRef& tensor = find(file, name, DType::kF64, origin);
  check_input(tensor.elements() == 1, name, " in ", origin, " has shape ",
              shape_string(tensor.shape), "; expected one number");
  double value = 0;
  std::memcpy(&value, tensor.data, sizeof(value));
  return value;
}

ModelGolden read_model_golden(const std::filesystem::path& path, const ModelConfig& config) {
  const TensorFile file = read_safetensors(path);
  const std::string origin = path.string();
  ModelGolden out;
  const TensorRef& ids = find(file, "ids", DType::kI64, origin);
  check_input(ids.shape.size() == 2 && ids.shape[0] >= 1 && ids.shape[1] >= 2, "ids in ", origin,
              " have shape ", shape_string(ids.shape), "; expected [sequences, tokens], 2 or more");
  out.batch = ids.shape[0];
  out.tokens = ids.shape[1];
  const TensorRef& logits = find(file, "logits", DType::kF64, origin);
  const std::vector<std::int64_t> shape{out.batch, out.tokens, config.padded_vocab()};
  check_input(logits.shape == shape, "logits in ", origin, " have shape ",
              shape_string(logits.shape), "; expected ", shape_string(shape));
  out.logits.resize(static_cast<std::size_t>(logits.elements()));
  std::memcpy(out.logits.data(), logits.data, out.logits.size() * sizeof(double));
  for (std::int64_t i = 0; i < ids.elements(); ++i) {
    std::int64_t id = 0;
    std::memcpy(&id, ids.data + i * static_cast<std::int64_t>(sizeof(id)), sizeof(id));
    check_input(id >= 0 && id < config.padded_vocab(), "id ", i, " in ", origin, " is ", id,
                "; expected 0 to ", config.padded_vocab() - 1);
    out.ids.push_back(static_cast<std::int32_t>(id));
  }
  out.loss = read_number(file, "loss", origin);
  out.loss_true_vocab = read_number(file, "loss_true_vocab", origin);
  return out;
}

// Mean cross-entropy of each next id over the first `vocab` columns, in double.
double cross_entropy(const ModelGolden& golden, const std::vector<double>& logits,
                     std::int64_t padded, std::int64_t vocab) {
  double sum = 0;
  for (std::int64_t row = 0; row < golden.batch; ++row) {
    for (std::int64_t t = 0; t + 1 < golden.tokens; ++t) {
      const double* at = logits.data() + (row * golden.tokens + t) * padded;
      const double most = *std::max_element(at, at + vocab);
      double total = 0;
      for (std::int64_t i = 0; i < vocab; ++i) total += std::exp(at[i] - most);
      sum += most + std::log(total) - at[golden.ids[row * golden.tokens + t + 1]];
    }
  }
  return sum / static_cast<double>(golden.batch * (golden.tokens - 1));
}

class ModelVerifier {
 public:
  ModelVerifier(const std::filesystem::path& file, const VerifyOptions& options,
                VerifyReport& report, Context& ctx)
      : file_(file.string()), options_(options), report_(report), ctx_(ctx) {
    files_ = open_checkpoint_files(file.parent_path());
    choose_a_activation(files_.config, {}, ctx_);
    golden_ = read_model_golden(file, files_.config);
    padded_ = files_.config.padded_vocab();
  }

  void verify() {
    const bool bf16 = options_.dtype == ComputeDType::kBf16;
    const auto& tensors = files_.weights->tensors;
    exact_ = for_each_sequence([&](std::span<const std::int32_t> ids) {
      return reference_logits(files_.config, tensors, ids);
    });
    note("oracle", exact_, {}, {}, kGoldenRounding);
    const auto plain = [&](PlainRounding rounding) {
      return for_each_sequence([&](std::span<const std::int32_t> ids) {
        return plain_logits(files_.config, tensors, ids, rounding);
      });
    };
    const auto model =
        Model::create(files_.config, tensors, files_.weights, {options_.dtype, false}, ctx_);
    const double rounding = bf16 ? kBf16Rounding : kFloatRounding;
    const auto authors = [&](AuthorsPath path) {
      return for_each_sequence([&](std::span<const std::int32_t> ids) {
        return authors_logits(files_.config, tensors, ids, path);
      });
    };
    note("prefill", prefill(*model), plain({bf16, bf16}), authors(AuthorsPath::kPrefill), rounding);
    note("step", step(*model), plain({bf16, false}), authors(AuthorsPath::kStep), rounding);
  }

 private:
  template <class Logits>
  std::vector<double> for_each_sequence(const Logits& logits) const {
    std::vector<double> out;
    for (std::int64_t row = 0; row < golden_.batch; ++row) {
      const auto some = logits(std::span(golden_.ids)
                                   .subspan(static_cast<std::size_t>(row * golden_.tokens),
                                            static_cast<std::size_t>(golden_.tokens)));
      out.insert(out.end(), some.begin(), some.end());
    }
    return out;
  }

  std::vector<std::int32_t> slots() const {
    std::vector<std::int32_t> out(static_cast<std::size_t>(golden_.batch));
    std::iota(out.begin(), out.end(), 0);
    return out;
  }

  std::vector<double> prefill(const Model& model) {
    std::vector<double> out(golden_.logits.size());
    std::vector<std::int64_t> cu_seqlens;
    for (std::int64_t i = 0; i <= golden_.batch; ++i) cu_seqlens.push_back(i * golden_.tokens);
    const std::vector<std::int32_t> into = slots();
    StatePool states(files_.config, golden_.batch, ctx_);
    PrefillArgs args;
    args.ids = golden_.ids;
    args.cu_seqlens = cu_seqlens;
    args.slots = into;
    std::vector<std::int64_t> every(golden_.ids.size());
    std::iota(every.begin(), every.end(), 0);
    args.logit_tokens = every;
    args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
      for (std::int64_t i = 0; i < logits.shape[0]; ++i) {
        for (std::int64_t j = 0; j < padded_; ++j) out[which[i] * padded_ + j] = logits(i, j);
      }
    };
    model.prefill(args, states, ctx_);
    return out;
  }

  std::vector<double> step(const Model& model) {
    std::vector<double> out(golden_.logits.size());
    std::vector<float> logits(static_cast<std::size_t>(golden_.batch * padded_));
    StatePool states(files_.config, golden_.batch, ctx_);
    for (std::int64_t t = 0; t < golden_.tokens; ++t) {
      std::vector<std::int32_t> ids;
      for (std::int64_t row = 0; row < golden_.batch; ++row) {
        ids.push_back(golden_.ids[row * golden_.tokens + t]);
      }
      model.step(ids, slots(), states,
                 TensorView<float, 2>(logits.data(), {golden_.batch, padded_}), ctx_);
      for (std::int64_t row = 0; row < golden_.batch; ++row) {
        std::copy_n(logits.begin() + row * padded_, padded_,
                    out.begin() + (row * golden_.tokens + t) * padded_);
      }
    }
    return out;
  }

  // The logits, and the two losses that follow from them. No `naive`: the oracle. The plain run's
  // error is measured against the oracle, since a wrong file would make any error look allowed.
  void note(const std::string& path, const std::vector<double>& got,
            const std::vector<double>& naive, const std::vector<double>& authors, double rounding) {
    const auto error = [](const std::vector<double>& a, const std::vector<double>& b) {
      return largest_error(std::span<const double>(a), std::span<const double>(b),
                           ErrorMetric::kRelative);
    };
    const auto add = [&](const char* name, const std::vector<double>& value,
                         const std::vector<double>& plain, const std::vector<double>& exact,
                         const std::vector<double>& expected) {
      const double naive_error = naive.empty() ? 0 : error(plain, exact);
      const Comparison c = judge(error(value, expected), naive_error, rounding);
      report_.cases.push_back(
          {file_, std::string(name) + " (" + path + ")", c.error, c.naive_error, c.bound, c.ok});
    };
    add("logits", got, naive, exact_, golden_.logits);
    if (!authors.empty()) hold_to_authors(got, authors, report_.cases.back());
    const auto add_loss = [&](const char* name, std::int64_t vocab, double expected) {
      const auto loss = [&](const std::vector<double>& logits) -> std::vector<double> {
        if (logits.empty()) return {};
        return {cross_entropy(golden_, logits, padded_, vocab)};
      };
      add(name, loss(got), loss(naive), loss(exact_), {expected});
    };
    add_loss("loss", padded_, golden_.loss);
    add_loss("loss_true_vocab", files_.config.vocab, golden_.loss_true_vocab);
  }

  // The logits alone: a loss is one number, whose roundings may cancel by luck.
  void hold_to_authors(const std::vector<double>& got, const std::vector<double>& authors,
                       VerifyCase& logits) const {
    const auto rms = [](const std::vector<double>& a, const std::vector<double>& b) {
      return rms_error(std::span<const double>(a), std::span<const double>(b),
                       ErrorMetric::kRelative);
    };
    logits.rms_error = rms(got, golden_.logits);
    logits.authors_rms_error = rms(authors, exact_);
    logits.ok = logits.ok && within_authors(*logits.rms_error, *logits.authors_rms_error);
  }

  std::string file_;
  const VerifyOptions& options_;
  VerifyReport& report_;
  Context& ctx_;
  CheckpointFiles files_;
  ModelGolden golden_;
  std::int64_t padded_ = 0;
  std::vector<double> exact_;  // the oracle's logits
};

}  // namespace

void verify_model_golden(const std::filesystem::path& file, const VerifyOptions& options,
                         VerifyReport& report, Context& ctx) {
  ModelVerifier(file, options, report, ctx).verify();
  if (options.gradients) verify_model_gradients(file, options, report, ctx);
}

}  // namespace mamba3
