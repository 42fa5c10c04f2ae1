#include "engine/verify.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "io/tensor_file.h"
#include "mamba3/device.h"
#include "mamba3/error.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;

const fs::path kGoldens = fs::path(MAMBA3_TEST_DATA) / "golden";

VerifyReport verify(const std::vector<fs::path>& paths, const VerifyOptions& how) {
  ContextOptions options;
  options.threads = 2;
  Context ctx(options);
  return verify_goldens(paths, how, ctx);
}
VerifyReport verify(const std::vector<fs::path>& paths, ComputeDType dtype = ComputeDType::kF32) {
  return verify(paths, VerifyOptions{dtype});
}

void expect_all_ok(const VerifyReport& report) {
  for (const VerifyCase& c : report.cases) {
    EXPECT_TRUE(c.ok) << c.file << ": " << c.tensor << ": error " << c.max_rel_error << ", naive "
                      << c.naive_error << ", bound " << c.bound;
  }
  EXPECT_EQ(report.failed(), 0);
  EXPECT_EQ(report.passed(), static_cast<std::int64_t>(report.cases.size()));
}

void expect_close_in_fp32(const VerifyReport& report) {
  for (const VerifyCase& c : report.cases) {
    if (c.file.find("extreme") != std::string::npos) continue;
    EXPECT_LT(c.max_rel_error, 1e-5) << c.file << ": " << c.tensor;
  }
}

TEST(Verify, EveryGoldenInFp32) {
  const VerifyReport report = verify({kGoldens});
  expect_all_ok(report);
  expect_close_in_fp32(report);
  std::set<std::string> files;
  for (const VerifyCase& c : report.cases) files.insert(c.file);
  EXPECT_EQ(files.size(), 21u);
  EXPECT_GT(report.cases.size(), 600u);
}

TEST(Verify, EveryGoldenInBf16) {
  expect_all_ok(verify({kGoldens}, ComputeDType::kBf16));
}

bool is_gradient(const VerifyCase& c) {
  return c.tensor.starts_with("grad.");
}

TEST(Verify, EveryGradient) {
  const VerifyReport report = verify({kGoldens}, VerifyOptions{ComputeDType::kF32, true});
  expect_all_ok(report);
  // By the oracle and by the op.
  EXPECT_GT(std::count_if(report.cases.begin(), report.cases.end(), is_gradient), 500);
}

TEST(CudaVerify, EveryGradient) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  ContextOptions options;
  options.device = {DeviceKind::kCuda, 0};
  Context ctx(options);
  const VerifyReport report =
      verify_goldens({kGoldens}, VerifyOptions{ComputeDType::kF32, true}, ctx);
  expect_all_ok(report);
  const auto is_backward = [](const VerifyCase& c) {
    return is_gradient(c) && c.tensor.ends_with(" (backward)");
  };
  EXPECT_GT(std::count_if(report.cases.begin(), report.cases.end(), is_backward), 200);
}

TEST(Verify, GradientsOnlyWhenAsked) {
  const VerifyReport report = verify({kGoldens / "scan_siso_n16_p16_t1.safetensors"});
  EXPECT_TRUE(std::none_of(report.cases.begin(), report.cases.end(), is_gradient));
}

TEST(Verify, TheOtherGoldens) {
  const fs::path shared = fs::path(MAMBA3_SHARED_DATA) / "golden";
  if (!fs::exists(shared)) GTEST_SKIP() << "no " << shared << ": only tests/golden was checked";
  const VerifyReport report = verify({shared});
  expect_all_ok(report);
  expect_close_in_fp32(report);
}

TEST(Verify, NamesEveryPathAndTensor) {
  const VerifyReport report = verify({kGoldens / "scan_cont_mimo4.safetensors"});
  std::set<std::string> names;
  for (const VerifyCase& c : report.cases) names.insert(c.tensor);
  EXPECT_EQ(names.size(), report.cases.size());
  for (const char* path : {"(oracle)", "(step)", "(scan)"}) {
    for (const char* tensor : {"out.y ", "state1.angle ", "state1.ssm ", "state1.k ", "state1.v ",
                               "cut7.ssm ", "out.y after cut 7 ", "state1.k after cut 130 "}) {
      EXPECT_TRUE(names.contains(std::string(tensor) + path)) << tensor << path;
    }
  }
  const VerifyReport packed = verify({kGoldens / "scan_packed_mimo2_outnorm.safetensors"});
  EXPECT_TRUE(std::any_of(packed.cases.begin(), packed.cases.end(), [](const VerifyCase& c) {
    return c.tensor == "out.y and state1, one by one against together (scan)";
  }));
}

// Beside every error of a fast path stands what the authors' roundings make it; the oracle and the
// comparisons of bits have none.
TEST(Verify, PrintsTheAuthorsErrorsBesideOurs) {
  for (const ComputeDType dtype : {ComputeDType::kF32, ComputeDType::kBf16}) {
    const VerifyReport report = verify({kGoldens}, dtype);
    std::int64_t compared = 0;
    for (const VerifyCase& c : report.cases) {
      EXPECT_EQ(c.rms_error.has_value(), c.authors_rms_error.has_value()) << c.tensor;
      const bool oracle = c.tensor.ends_with("(oracle)");
      const bool bits = c.tensor.find("one by one") != std::string::npos;
      if (!c.tensor.starts_with("loss")) {
        EXPECT_EQ(c.rms_error.has_value(), !oracle && !bits) << c.tensor;
      }
      if (!c.rms_error) continue;
      ++compared;
      EXPECT_LE(*c.rms_error, *c.authors_rms_error + 8 * 0x1p-24) << c.file << ": " << c.tensor;
    }
    EXPECT_GT(compared, 350);
  }
}

TEST(Verify, OneModelByItsFolderOrItsFile) {
  const fs::path folder = kGoldens / "lm_mimo_bf16_mixed_g2";
  const VerifyReport by_folder = verify({folder});
  const VerifyReport by_file = verify({folder / "golden.safetensors"});
  expect_all_ok(by_folder);
  ASSERT_EQ(by_folder.cases.size(), 9u);
  EXPECT_EQ(by_file.cases.size(), 9u);
  EXPECT_EQ(by_folder.cases[0].tensor, "logits (oracle)");
}

// A copy of a golden that a test may damage; gone with the test.
class Copy {
 public:
  explicit Copy(const fs::path& from)
      : folder_(fs::temp_directory_path() /
                ("mamba3_verify_" + std::to_string(getpid()) + "_" + std::to_string(count_++))) {
    fs::create_directories(folder_);
    if (fs::is_directory(from)) {
      fs::copy(from, folder_);
      path_ = folder_ / "golden.safetensors";
    } else {
      path_ = folder_ / from.filename();
    }
    source_ = fs::is_directory(from) ? from / "golden.safetensors" : from;
    const TensorFile file = read_safetensors(source_);
    metadata_ = file.metadata;
    for (const auto& [name, tensor] : file.tensors) {
      Tensor& copy = tensors_[name];
      copy.dtype = tensor.dtype;
      copy.shape = tensor.shape;
      copy.data.assign(tensor.data, tensor.data + tensor.bytes());
    }
  }
  ~Copy() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  struct Tensor {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;

    double* doubles() { return reinterpret_cast<double*>(data.data()); }
    std::int64_t count() const { return static_cast<std::int64_t>(data.size() / sizeof(double)); }
  };

  fs::path write() const {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors_) {
      all.push_back({name, {tensor.data.data(), tensor.dtype, tensor.shape}});
    }
    write_safetensors(path_, all, metadata_);
    return path_;
  }

  std::map<std::string, Tensor>& tensors() { return tensors_; }
  std::map<std::string, std::string>& metadata() { return metadata_; }

 private:
  static inline int count_ = 0;
  fs::path folder_;
  fs::path path_;
  fs::path source_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// The same numbers fail where ours lie behind: an expectation that is off by more than the authors
// are, and by less than the tolerance rule allows for bf16.
TEST(Verify, RefusesWhatLiesBehindTheAuthors) {
  Copy copy(kGoldens / "mixer_siso_t64.safetensors");
  Copy::Tensor& y = copy.tensors().at("out.y");
  double* values = y.doubles();
  for (std::int64_t i = 0; i < y.count(); ++i) values[i] *= 1.005;
  bool behind = false;
  for (const VerifyCase& c : verify({copy.write()}, ComputeDType::kBf16).cases) {
    if (c.tensor != "out.y (scan)") continue;
    EXPECT_LE(c.max_rel_error, c.bound);
    EXPECT_GT(*c.rms_error, *c.authors_rms_error);
    EXPECT_FALSE(c.ok);
    behind = true;
  }
  EXPECT_TRUE(behind);
}

// One number of an expectation off by 1 % of the largest: every path must refuse it.
void expect_refused(const fs::path& golden, const std::string& tensor, std::size_t fewest_paths,
                    ComputeDType dtype) {
  Copy copy(golden);
  Copy::Tensor& spoilt = copy.tensors().at(tensor);
  double* values = spoilt.doubles();
  const std::int64_t count = spoilt.count();
  double most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i]));
  values[count / 2] += 0.01 * most;
  const VerifyReport report = verify({copy.write()}, dtype);
  std::set<std::string> paths;
  for (const VerifyCase& c : report.cases) {
    if (c.ok) continue;
    // From a spoilt state in the middle, the oracle goes on to wrong results.
    EXPECT_TRUE(c.tensor.starts_with(tensor) ||
                c.tensor.find("after cut 17 (oracle)") != std::string::npos)
        << c.tensor << " fails for a spoilt " << tensor;
    paths.insert(c.tensor.substr(c.tensor.rfind('(')));
  }
  EXPECT_GE(paths.size(), fewest_paths) << golden << " " << tensor;
  EXPECT_GT(report.failed(), 0);
}

TEST(Verify, RefusesASpoiltExpectation) {
  for (const char* tensor : {"out.y", "state1.angle", "state1.ssm", "state1.k", "state1.v"}) {
    for (const char* file : {"scan_packed_mimo2_outnorm", "scan_siso_n16_p16_t1", "mixer_siso_t64",
                             "scan_mimo4_extreme_g2_rope1_t65_init"}) {
      expect_refused(kGoldens / (file + std::string(".safetensors")), tensor, 3,
                     ComputeDType::kF32);
    }
  }
  expect_refused(kGoldens / "scan_cont_mimo4.safetensors", "cut17.k", 3, ComputeDType::kF32);
  expect_refused(kGoldens / "scan_cont_mimo4.safetensors", "cut17.ssm", 3, ComputeDType::kF32);
  for (const char* tensor : {"logits", "loss", "loss_true_vocab"}) {
    expect_refused(kGoldens / "lm_siso_fp32", tensor, 3, ComputeDType::kF32);
  }
}

TEST(Verify, RefusesASpoiltExpectationInBf16) {
  expect_refused(kGoldens / "scan_mimo4_step_b2_init.safetensors", "out.y", 3, ComputeDType::kBf16);
  expect_refused(kGoldens / "scan_siso_n64_p64_rope1_t63.safetensors", "state1.k", 3,
                 ComputeDType::kBf16);
}

TEST(Verify, RefusesNanWhereANumberIsExpectedAndTheReverse) {
  Copy copy(kGoldens / "scan_siso_n16_p16_t1.safetensors");
  copy.tensors().at("out.y").doubles()[3] = std::numeric_limits<double>::quiet_NaN();
  const VerifyReport report = verify({copy.write()});
  EXPECT_EQ(report.failed(), 3);
  for (const VerifyCase& c : report.cases) {
    EXPECT_TRUE(std::isfinite(c.max_rel_error));
    EXPECT_TRUE(std::isfinite(c.bound));
  }
}

TEST(Verify, ASpoiltInputIsNoticedToo) {
  Copy copy(kGoldens / "mixer_mimo2_packed_init.safetensors");
  copy.tensors().at("param.B_norm.weight").doubles()[5] *= 1.5;
  EXPECT_GT(verify({copy.write()}).failed(), 6);
}

using Damage = std::function<void(Copy&)>;

void expect_error(const fs::path& golden, const char* what, const Damage& damage) {
  Copy copy(golden);
  damage(copy);
  const fs::path path = copy.write();
  try {
    verify({path});
    ADD_FAILURE() << what << ": no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << what;
  }
}

void reshape(Copy& copy, const std::string& name, std::vector<std::int64_t> shape) {
  Copy::Tensor& tensor = copy.tensors().at(name);
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  tensor.shape = std::move(shape);
  tensor.data.resize(static_cast<std::size_t>(count * dtype_bytes(tensor.dtype)));
}

TEST(Verify, RefusesFilesThatAreNoGoldens) {
  const fs::path scan = kGoldens / "scan_siso_n16_p16_t1.safetensors";
  expect_error(scan, "no case", [](Copy& c) { c.metadata().clear(); });
  expect_error(scan, "case is no JSON", [](Copy& c) { c.metadata()["case"] = "{"; });
  expect_error(scan, "case is no object", [](Copy& c) { c.metadata()["case"] = "[1]"; });
  expect_error(scan, "other kind", [](Copy& c) { c.metadata()["case"] = R"({"kind":"lm"})"; });
  expect_error(scan, "option of a wrong type",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","mimo":"yes"})"; });
  expect_error(scan, "other activation",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","act":"relu"})"; });
  expect_error(scan, "floor that is no number",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","A_floor":-1})"; });
  expect_error(scan, "mimo without its tensors",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","mimo":true})"; });
  expect_error(scan, "cut outside",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","cuts":[5]})"; });
  expect_error(scan, "cut without its state",
               [](Copy& c) { c.metadata()["case"] = R"({"kind":"scan","cuts":[1]})"; });
  for (const char* name : {"in.x", "in.angle", "param.D", "out.y", "state1.v"}) {
    expect_error(scan, name, [&](Copy& c) { c.tensors().erase(name); });
    expect_error(scan, name, [&](Copy& c) { c.tensors().at(name).dtype = DType::kI64; });
    expect_error(scan, name, [&](Copy& c) { reshape(c, name, {7}); });
  }
  expect_error(scan, "nothing in it", [](Copy& c) { reshape(c, "in.x", {1 << 20, 0, 2, 16}); });
  expect_error(scan, "no channels", [](Copy& c) { reshape(c, "in.x", {1, 1, 2, 0}); });
}

TEST(Verify, RefusesPackedFilesThatDoNotAddUp) {
  const fs::path packed = kGoldens / "mixer_mimo2_packed_init.safetensors";
  const auto bounds = [](Copy& c) {
    return reinterpret_cast<std::int64_t*>(c.tensors().at("cu_seqlens").data.data());
  };
  expect_error(packed, "does not start at 0", [&](Copy& c) { bounds(c)[0] = 1; });
  expect_error(packed, "decreases", [&](Copy& c) { bounds(c)[1] = 100; });
  expect_error(packed, "ends too early", [&](Copy& c) { bounds(c)[5] = 109; });
  expect_error(packed, "ends too late", [&](Copy& c) { bounds(c)[5] = std::int64_t{1} << 60; });
  expect_error(packed, "negative", [&](Copy& c) { bounds(c)[1] = -5; });
  expect_error(packed, "one bound only", [](Copy& c) { reshape(c, "cu_seqlens", {1}); });
  expect_error(packed, "in_proj too small", [](Copy& c) {
    reshape(c, "param.in_proj.weight", {200, 24});
  });
  expect_error(packed, "in_proj with too many angles", [](Copy& c) {
    reshape(c, "param.in_proj.weight", {300, 24});
  });
}

TEST(Verify, RefusesModelGoldensThatDoNotFit) {
  const fs::path model = kGoldens / "lm_siso_fp32";
  expect_error(model, "no logits", [](Copy& c) { c.tensors().erase("logits"); });
  expect_error(model, "other vocabulary", [](Copy& c) { reshape(c, "logits", {2, 33, 103}); });
  expect_error(model, "one token", [](Copy& c) {
    reshape(c, "ids", {2, 1});
    reshape(c, "logits", {2, 1, 104});
  });
  expect_error(model, "id outside", [](Copy& c) {
    reinterpret_cast<std::int64_t*>(c.tensors().at("ids").data.data())[3] = 104;
  });
  expect_error(model, "two losses", [](Copy& c) { reshape(c, "loss", {2}); });
}

TEST(Verify, RefusesPathsThatHoldNothing) {
  EXPECT_THROW(verify({kGoldens / "no_such_file.safetensors"}), Error);
  EXPECT_THROW(verify({fs::path(MAMBA3_TEST_DATA) / "engine"}), Error);
  EXPECT_THROW(verify({kGoldens / "README.md"}), Error);
  Copy copy(kGoldens / "scan_siso_n16_p16_t1.safetensors");
  const fs::path path = copy.write();
  fs::resize_file(path, fs::file_size(path) - 9);
  EXPECT_THROW(verify({path}), Error);
}

}  // namespace
}  // namespace mamba3
