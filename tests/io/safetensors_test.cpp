#include <gtest/gtest.h>

#include "file_test_util.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

using Sizes = std::vector<std::int64_t>;

std::string file_text(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

TensorFile parse(const std::string& header, std::size_t data_bytes) {
  std::string data;
  for (std::size_t i = 0; i < data_bytes; ++i) data += static_cast<char>(i);
  return parse_safetensors(in_memory(file_text(header, data)));
}

void expect_refused(const std::string& part, const std::string& header, std::size_t data_bytes) {
  SCOPED_TRACE(header.substr(0, 200));
  expect_error(part, [&] { parse(header, data_bytes); });
}

TEST(Safetensors, ReadsEveryType) {
  const TensorFile file = parse(
      R"({"__metadata__":{"format":"pt","x":""},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"shape":[],"data_offsets":[24,32],"dtype":"F64"},"c":{"dtype":"BF16","shape":[1],"data_offsets":[32,34]},)"
      R"("z":{"dtype":"I8","shape":[0,5],"data_offsets":[34,34]},"d":{"dtype":"BOOL","shape":[3],"data_offsets":[34,37]}}   )",
      37);
  EXPECT_EQ(file.tensors.size(), 5u);
  EXPECT_EQ(file.metadata.at("format"), "pt");
  EXPECT_EQ(file.tensors.at("a").shape, (Sizes{2, 3}));
  EXPECT_EQ(file.tensors.at("b").shape, Sizes{});
  EXPECT_EQ(static_cast<int>(file.tensors.at("c").data[1]), 33);
  EXPECT_EQ(file.tensors.at("z").bytes(), 0);
  EXPECT_EQ(file.tensors.at("d").dtype, DType::kBool);
}

TEST(Safetensors, MisalignedTensorsAreCopied) {
  std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"I32","shape":[2],"data_offsets":[1,9]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const TensorFile file = parse(header, 9);
  ASSERT_EQ(file.copies.size(), 1u);
  const TensorRef& b = file.tensors.at("b");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data) % 4, 0u);
  EXPECT_EQ(*reinterpret_cast<const std::int32_t*>(b.data), 0x04030201);
}

TEST(Safetensors, BrokenHeaders) {
  const std::string a = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)";
  expect_refused("does not begin with {", R"( {})", 0);
  expect_refused("does not begin with {", R"([])", 0);
  expect_refused("is not valid JSON", R"({"a")", 0);
  expect_refused("is not valid JSON", R"({}x)", 0);
  expect_refused("is not valid JSON", "{\"\xff\":1}", 0);
  expect_refused("nests deeper", R"({"a":{"b":[[)", 0);
  expect_refused("a number where none belongs", R"({"a":5})", 0);
  expect_refused("lacks one of", R"({"a":{"dtype":"F32","shape":[2]}})", 8);
  expect_refused("an unknown field", R"({"a":{"type":"F32"}})", 8);
  expect_refused("has one field twice", R"({"a":{"dtype":"F32","dtype":"F32"}})", 8);
  expect_refused("is there twice", a + "[0,8]}," + a.substr(1) + "[0,8]}}", 8);
  expect_refused("too long a name", "{\"" + std::string(5000, 'n') + "\":{}}", 0);
  expect_refused("has one key twice", R"({"__metadata__":{"a":"","a":""}})", 0);
  expect_refused("a number where none belongs", R"({"__metadata__":{"a":1}})", 0);
  expect_refused("a list where none belongs", R"({"__metadata__":{"a":[]}})", 0);
  expect_refused("an object where none belongs", R"({"a":{"dtype":{}}})", 0);
  expect_refused("a text where none belongs", R"({"a":{"shape":"2"}})", 0);
  expect_refused("not two numbers", a + "[0]}}", 8);
  expect_refused("not two numbers", a + "[0,8,8]}}", 8);
  expect_refused("a negative number", a + "[-1,8]}}", 8);
  expect_refused("a fraction", a + "[0.0,8]}}", 8);
  expect_refused("beyond 63 bits", a + "[0,9223372036854775808]}}", 8);
  expect_refused("a fraction", a + "[0,99999999999999999999]}}", 8);
  expect_refused("has dtype \"F8_E5M2\"",
                 R"({"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}})", 2);
  expect_refused("too many dimensions", R"({"a":{"shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}})",
                 0);
}

TEST(Safetensors, BrokenLayouts) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + first +
           R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + second + "}}";
  };
  EXPECT_EQ(parse(two("[8,16]", "[0,8]"), 16).tensors.size(), 2u);
  expect_refused("expected 8, where the one before", two("[0,8]", "[4,12]"), 12);
  expect_refused("expected 8, where the one before", two("[0,8]", "[12,20]"), 20);
  expect_refused("expected 8, where the one before", two("[0,8]", "[0,8]"), 8);
  expect_refused("data_offsets [8, 16]", two("[0,8]", "[8,16]"), 15);
  expect_refused("data_offsets [8, 0]", two("[0,8]", "[8,0]"), 16);
  expect_refused("holds 17 bytes of data", two("[0,8]", "[8,16]"), 17);
  expect_refused("has 4 bytes of data; expected 8", two("[0,4]", "[4,12]"), 12);
  expect_refused("a shape that fits",
                 R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})",
                 0);
  expect_refused("a shape that fits",
                 R"({"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})",
                 0);
}

TEST(Safetensors, BrokenLengths) {
  expect_error("expected a safetensors file", [] { parse_safetensors(in_memory("")); });
  expect_error("expected a safetensors file", [] { parse_safetensors(in_memory("1234567")); });
  expect_error("says its header has 18446744073709551615",
               [] { parse_safetensors(in_memory(std::string(8, '\xff') + "{}")); });
  expect_error("says its header has 3",
               [] { parse_safetensors(in_memory(std::string("\3\0\0\0\0\0\0\0", 8) + "{}")); });
  const std::string whole =
      file_text(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, 'x'));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_of([&] { parse_safetensors(in_memory(whole.substr(0, size))); }), "") << size;
  }
}

class SafetensorsIndex : public testing::Test {
 protected:
  void SetUp() override {
    const float data[] = {1, 2, 3, 4};
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    write_safetensors(folder_ / "one.safetensors", {{"a", {bytes, DType::kF32, {2}}}}, {});
    write_safetensors(folder_ / "two.safetensors",
                      {{"b", {bytes + 8, DType::kF32, {2}}}, {"a", {bytes, DType::kF32, {1}}}}, {});
  }
  TensorFile read(const std::string& index) {
    write_text(folder_ / "model.safetensors.index.json", index);
    return read_folder_weights(folder_.path());
  }
  TempFolder folder_;
};

TEST_F(SafetensorsIndex, ReadsEachTensorFromItsShard) {
  const TensorFile file =
      read(R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  EXPECT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.files.size(), 2u);
  EXPECT_EQ(file.tensors.at("a").shape, Sizes{2});
  EXPECT_EQ(*reinterpret_cast<const float*>(file.tensors.at("b").data), 3.0f);
}

TEST_F(SafetensorsIndex, NamesWhatIsMissing) {
  expect_error("not there: \"four.safetensors\", \"three.safetensors\"", [&] {
    read(
        R"({"weight_map":{"a":"three.safetensors","b":"four.safetensors","c":"one.safetensors"}})");
  });
  expect_error("do not hold them: \"b\", \"c\"", [&] {
    read(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})");
  });
}

TEST_F(SafetensorsIndex, BrokenIndexes) {
  for (const char* shard : {"../one.safetensors", "/etc/passwd", "x/y", "..", "", "a\\\\b"}) {
    expect_error("expected the name of a file in the same folder",
                 [&] { read(std::string(R"({"weight_map":{"a":")") + shard + "\"}}"); });
  }
  for (const char* text : {"{}", "[]", R"({"weight_map":[]})", R"({"weight_map":{}})"}) {
    expect_error("has no weight_map", [&] { read(text); });
  }
  expect_error("is number", [&] { read(R"({"weight_map":{"a":1}})"); });
  expect_error("nests deeper", [&] { read(std::string(100000, '[')); });
  expect_error("holds more than", [&] { read("[" + std::string(1 << 20, ',')); });
}

TEST(FolderWeights, SaysWhatIsNotThere) {
  const TempFolder folder;
  expect_error("holds no weights", [&] { read_folder_weights(folder.path()); });
  expect_error("is not a folder", [&] { read_folder_weights(folder / "x"); });
}

}  // namespace
}  // namespace mamba3
