#include <gtest/gtest.h>

#include <cmath>

#include "file_test_util.h"
#include "io/bytes.h"
#include "io/config_file.h"
#include "io/tensor_file.h"
#include "io/zip_writer.h"

namespace mamba3 {
namespace {

using namespace std::string_literals;
using Sizes = std::vector<std::int64_t>;

std::filesystem::path seed(const std::string& name) {
  return std::filesystem::path(MAMBA3_REPOSITORY) / "fuzz" / "corpus" / "torch_bin" / name;
}

template <class T>
std::vector<T> values(const TensorFile& file, const std::string& name) {
  const TensorRef& tensor = file.tensors.at(name);
  EXPECT_EQ(tensor.dtype, dtype_of<T>());
  std::vector<T> out(static_cast<std::size_t>(tensor.elements()));
  std::memcpy(out.data(), tensor.data, static_cast<std::size_t>(tensor.bytes()));
  return out;
}

TEST(TorchBin, EveryTypeThatTorchWrites) {
  for (const char* name : {"ok_state_dict.bin", "ok_protocol5.bin"}) {
    const TensorFile file = read_torch_bin(seed(name));
    EXPECT_EQ(file.tensors.size(), 13u);
    EXPECT_TRUE(file.copies.empty());
    EXPECT_EQ(values<float>(file, "float"), (std::vector<float>{0, .25, .5, .75, 1, 1.25, 1.5}));
    EXPECT_EQ(values<double>(file, "double"), (std::vector<double>{1.5, -2}));
    EXPECT_EQ(file.tensors.at("double").shape, (Sizes{1, 2}));
    EXPECT_EQ(values<std::int64_t>(file, "long"), (std::vector<std::int64_t>{1LL << 40, -3}));
    EXPECT_EQ(values<std::int32_t>(file, "int"), (std::vector<std::int32_t>{-7}));
    EXPECT_EQ(values<std::uint8_t>(file, "byte"), (std::vector<std::uint8_t>{200}));
    EXPECT_EQ(values<float>(file, "scalar"), (std::vector<float>{.25}));
    EXPECT_EQ(file.tensors.at("scalar").shape, Sizes{});
    EXPECT_EQ(file.tensors.at("empty").shape, (Sizes{0, 4}));
    const std::pair<const char*, DType> types[] = {{"half", DType::kF16},
                                                   {"short", DType::kI16},
                                                   {"char", DType::kI8},
                                                   {"bool", DType::kBool},
                                                   {"lm_head.weight", DType::kBf16}};
    for (const auto& [key, dtype] : types) EXPECT_EQ(file.tensors.at(key).dtype, dtype) << key;
    EXPECT_EQ(file.tensors.at("lm_head.weight").data,
              file.tensors.at("backbone.embedding.weight").data);
  }
}

TEST(TorchBin, ViewsOfStorages) {
  for (const char* name : {"ok_strided.bin", "ok_parameters.bin"}) {
    const TensorFile file = read_torch_bin(seed(name));
    const std::vector<float> transposed = values<float>(file, "transposed");
    EXPECT_EQ(file.tensors.at("transposed").shape, (Sizes{6, 4}));
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 4; ++j) EXPECT_EQ(transposed[i * 4 + j], j * 6 + i);
    }
    EXPECT_EQ(values<float>(file, "column"), (std::vector<float>{2, 8, 14, 20}));
    EXPECT_EQ(values<float>(file, "expanded"), std::vector<float>(5, 0));
    EXPECT_EQ(values<float>(file, "rows")[0], 6);
    EXPECT_EQ(file.tensors.at("rows").data, file.tensors.at("base").data + 6 * sizeof(float));
    EXPECT_EQ(file.copies.size(), 3u);  // transposed, column, expanded
  }
  const TensorFile file = read_torch_bin(seed("ok_strided.bin"));
  EXPECT_EQ(values<std::uint8_t>(file, "odd")[7], 8);
}

TEST(TorchBin, NestedUnderStateDict) {
  const TensorFile file = read_torch_bin(seed("ok_nested.bin"));
  EXPECT_EQ(values<float>(file, "w"), std::vector<float>(4, 1));
}

// An archive around a pickle, with 16 floats in storage 0.
std::string archive_of(const std::string& pickle) {
  const TempFolder folder;
  AtomicFile file(folder / "x.bin");
  ZipWriter archive(file);
  WriteProgress progress({}, 0);
  const std::vector<float> floats(16, 0.5f);
  archive.add("f/data.pkl", std::as_bytes(std::span(pickle)), progress);
  archive.add("f/data/0", std::as_bytes(std::span(floats)), progress);
  archive.finish();
  file.commit();
  return read_text(folder / "x.bin");
}

std::string number(std::int64_t value) {
  std::string out = "\x8a\x08";
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}
std::string numbers(const Sizes& values) {
  std::string out = "(";
  for (const std::int64_t value : values) out += number(value);
  return out + "t";
}

struct TensorText {
  std::string type = "FloatStorage";
  std::string key = "0";
  std::int64_t elements = 16;
  std::int64_t offset = 0;
  Sizes shape{4, 4};
  Sizes stride{4, 1};
  std::string rest = "\x89)";  // requires_grad, hooks

  std::string text() const {
    return "ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n" + type + "\nU" +
           static_cast<char>(key.size()) + key + "U\x06" + "cuda:0" + number(elements) + "tQ" +
           number(offset) + numbers(shape) + numbers(stride) + rest + "tR";
  }
};

TensorFile parse(const std::string& pickle) {
  return parse_torch_bin(in_memory(archive_of(pickle)));
}
TensorFile parse(const TensorText& tensor) {
  return parse("\x80\x02}U\x01w" + tensor.text() + "s.");
}

TEST(TorchBin, HandMadeTensor) {
  const TensorFile file = parse(TensorText{});
  EXPECT_EQ(file.tensors.at("w").shape, (Sizes{4, 4}));
  EXPECT_EQ(values<float>(file, "w")[15], 0.5f);
}

TEST(TorchBin, LyingTensors) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  const auto refused = [](const std::string& part, const TensorText& tensor) {
    SCOPED_TRACE(part);
    expect_error(part, [&] { parse(tensor); });
  };
  refused("number 19 of a storage of 16", {.offset = 4});
  refused("number 16 of a storage of 16", {.shape = {17}, .stride = {1}});
  refused("number 4611686018427387904", {.offset = kHuge, .shape = {1}, .stride = {1}});
  refused("with odd parts", {.offset = -1});
  refused("negative or no number", {.shape = {-4, 4}});
  refused("negative or no number", {.stride = {4, -1}});
  refused("shape that overflows", {.shape = {kHuge, 4}, .stride = {0, 0}});
  refused("shape that overflows", {.shape = {kHuge, 4, 0}, .stride = {0, 0, 0}});
  refused("shape or stride that overflows", {.shape = {4, 4}, .stride = {kHuge, 1}});
  refused("shape or stride that overflows",
          {.offset = 1, .shape = {2, 2}, .stride = {kHuge, kHuge}});
  refused("unequal numbers of extents", {.shape = {16}});
  refused("unfold to more than the file", {.shape = {1 << 20, 1}, .stride = {0, 1}});
  refused("without a usable shape", {.shape = Sizes(17, 1), .stride = Sizes(17, 1)});
  refused("storage \"0\" of 15 elements", {.elements = 15});
  refused("storage \"0\" of 16 elements F64", {.type = "DoubleStorage"});
  refused("storage \"0\" of -16 elements", {.elements = -16});
  refused("storage \"0\" of 4611686018427387904 elements", {.elements = kHuge});
  refused("storage \"7\", which is not in the archive", {.key = "7"});
  refused("storage \"../data.pkl\", which is not", {.key = "../data.pkl"});
  refused("forbidden global \"torch.QInt8Storage\"", {.type = "QInt8Storage"});
  refused("a lazy conjugate", {.rest = "\x89)}U\x04" + "conj\x88s"s});
  EXPECT_EQ(parse(TensorText{.shape = {kHuge, 0}, .stride = {0, 0}}).tensors.at("w").bytes(), 0);
}

TEST(TorchBin, CopiesAreBoundedTogether) {
  std::string pickle = "\x80\x02}(";
  for (char name = 'a'; name <= 'z'; ++name) {
    pickle += "U\x01"s + name + TensorText{.stride = {1, 4}}.text();
  }
  EXPECT_EQ(parse(pickle + "u.").copies.size(), 26u);  // 64 bytes each, in a larger file
  pickle = "\x80\x02}(";
  for (char name = 'a'; name <= 'z'; ++name) {
    pickle += "U\x01"s + name + TensorText{.shape = {100, 4}, .stride = {0, 1}}.text();
  }
  expect_error("unfold to more than the file", [&] { parse(pickle + "u."); });
}

TEST(TorchBin, OddDictionaries) {
  const std::string w = TensorText{}.text();
  expect_error("tensor \"w\" twice", [&] { parse("\x80\x02}(U\x01w" + w + "U\x01w" + w + "u."); });
  expect_error("a key that is not a text", [&] { parse("\x80\x02}N" + w + "s."); });
  expect_error("something other than a dictionary", [&] { parse("\x80\x02" + w + "."); });
  expect_error("entry \"w\", which is no tensor", [&] { parse("\x80\x02}U\x01wNs."); });
  expect_error("entry \"w\", which is no tensor", [&] { parse("\x80\x02}U\x01w]s."); });
  expect_error("without a storage", [&] {
    parse("\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89)tRs."s);
  });
  // A parameter of a parameter, and one of itself.
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n";
  expect_error("which is no tensor",
               [&] { parse("\x80\x02}U\x01w" + parameter + parameter + w + "\x85R\x85Rs."); });
  EXPECT_EQ(parse("\x80\x02}U\x01w" + parameter + w + "\x89)\x87Rs.").tensors.size(), 1u);
}

TEST(TorchBin, DamagedPickleAndOtherFiles) {
  std::string archive = archive_of("\x80\x02}U\x01w" + TensorText{}.text() + "s.");
  const std::size_t name = archive.find("storage");
  archive[name] ^= 1;
  expect_error("does not match its checksum", [&] { parse_torch_bin(in_memory(archive)); });
  expect_error("Git LFS pointer", [] {
    parse_torch_bin(in_memory("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"));
  });
  expect_error("before version 1.6", [] { parse_torch_bin(in_memory("\x80\x02\x8a\x0a")); });
  expect_error("is not a zip archive", [] { parse_torch_bin(in_memory("hello")); });
  expect_error("is not a zip archive", [] { parse_torch_bin(in_memory("")); });
  expect_error("No such file", [] { read_torch_bin("/nonexistent/pytorch_model.bin"); });
  expect_error("is a folder", [] { read_torch_bin("/"); });
}

TEST(TorchBin, EveryTruncationIsRefused) {
  const std::string whole = read_text(seed("ok_state_dict.bin"));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    ASSERT_NE(error_of([&] { parse_torch_bin(in_memory(whole.substr(0, size))); }), "") << size;
  }
}

// Reads every checkpoint folder in `group` and compares it with its config; returns how many.
int check_folders(const std::filesystem::path& group) {
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(group)) {
    if (!std::filesystem::exists(entry.path() / "pytorch_model.bin")) continue;
    SCOPED_TRACE(entry.path());
    const ModelConfig config = read_config(entry.path() / "config.json");
    const TensorFile file = read_torch_bin(entry.path() / "pytorch_model.bin");
    EXPECT_TRUE(file.copies.empty());
    const std::vector<TensorSpec> specs = tensor_specs(config);
    EXPECT_EQ(file.tensors.size(), specs.size() + (config.tied_embeddings ? 1 : 0));
    for (const TensorSpec& spec : specs) {
      const auto found = file.tensors.find(spec.name);
      EXPECT_TRUE(found != file.tensors.end() && found->second.shape == spec.shape) << spec.name;
    }
    ++folders;
  }
  return folders;
}

// Written by the authors' package; values looked up by hand in the storages of the files.
TEST(TorchBin, Goldens) {
  const std::filesystem::path golden = std::filesystem::path(MAMBA3_REPOSITORY) / "tests/golden";
  EXPECT_EQ(check_folders(golden), 4);
  const TensorFile fp32 = read_torch_bin(golden / "lm_siso_fp32/pytorch_model.bin");
  EXPECT_EQ(values<float>(fp32, "backbone.embedding.weight")[0], -0x1.8d0028p-5f);
  EXPECT_EQ(values<float>(fp32, "backbone.layers.0.norm.weight")[3], 0x1.2fc6aap+0f);
  EXPECT_EQ(values<float>(fp32, "backbone.layers.0.mixer.dt_bias"),
            (std::vector<float>{-0x1.8p-1f, -0x1.acp-1f, -0x1.14p+0f, -0x1.9ep-3f}));
  const TensorFile bf16 = read_torch_bin(golden / "lm_siso_bf16_defaults/pytorch_model.bin");
  const TensorRef& embedding = bf16.tensors.at("backbone.embedding.weight");
  const auto* bits = reinterpret_cast<const std::uint16_t*>(embedding.data);
  EXPECT_EQ(bits[0], 0xbe24);
  EXPECT_EQ(bits[304 * 64 - 1], 0xbf4f);
}

TEST(TorchBin, SharedGoldensAndModels) {
  const std::filesystem::path shared = MAMBA3_SHARED_DATA;
  if (!std::filesystem::exists(shared / "golden")) GTEST_SKIP() << "no " << shared;
  EXPECT_EQ(check_folders(shared / "golden"), 6);
  EXPECT_EQ(check_folders(shared / "models"), 3);
}

}  // namespace
}  // namespace mamba3
