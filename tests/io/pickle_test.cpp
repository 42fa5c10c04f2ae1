#include "io/pickle.h"

#include <gtest/gtest.h>

#include "file_test_util.h"

namespace mamba3 {
namespace {

using namespace std::string_literals;

Pickle read(const std::string& text) {
  static constexpr std::string_view kAllowed[] = {"collections.OrderedDict", "torch.FloatStorage"};
  return read_pickle(std::as_bytes(std::span(text)), kAllowed, "input");
}

TEST(Pickle, Scalars) {
  const std::string text =
      "\x80\x02(NK\xc8M\x2c\x01J\xfe\xff\xff\xff\x8a\x00\x8a\x01\x80\x8a\x02\xff\x00"
      "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80\x88\x89G\x3f\xf8\x00\x00\x00\x00\x00\x00"
      "X\x02\x00\x00\x00hit."s;
  const Pickle pickle = read(text);
  ASSERT_TRUE(pickle.root.is(PickleKind::kTuple));
  const std::vector<PickleValue>& items = pickle.items(pickle.root);
  ASSERT_EQ(items.size(), 12u);
  EXPECT_TRUE(items[0].is(PickleKind::kNone));
  const std::vector<std::int64_t> numbers{200, 300, -2, 0, -128, 255, INT64_MIN, 1, 0};
  for (std::size_t i = 0; i < numbers.size(); ++i) EXPECT_EQ(items[i + 1].number, numbers[i]) << i;
  EXPECT_TRUE(items[8].is(PickleKind::kBool));
  EXPECT_EQ(items[10].real, 1.5);
  EXPECT_EQ(items[11].text, "hi");
}

TEST(Pickle, ContainersMemoAndCalls) {
  // {"a": [1, 2], "b": OrderedDict with state, "c": FloatStorage(1)}, the list recalled
  const std::string text =
      "\x80\x02}q\x00(U\x01"
      "a](K\x01K\x02"
      "eq\x07U\x01"
      "bccollections\nOrderedDict\n)R(U\x01xh\x07u}U\x01mNsbU\x01"
      "cctorch\nFloatStorage\nK\x01\x85Ru."s;
  const Pickle pickle = read(text);
  const std::vector<PickleValue>& items = pickle.items(pickle.root);
  ASSERT_EQ(items.size(), 6u);
  EXPECT_EQ(pickle.items(items[1]).size(), 2u);
  ASSERT_TRUE(items[3].is(PickleKind::kDict));
  EXPECT_EQ(pickle.items(items[3])[1].number, items[1].number);  // the same list
  ASSERT_TRUE(items[5].is(PickleKind::kCall));
  EXPECT_EQ(pickle.items(items[5])[0].number, 1);
}

TEST(Pickle, ForbiddenGlobalsAreNamed) {
  expect_error("forbidden global \"os.system\"",
               [] { read("\x80\x02"s + "cos\nsystem\nX\x02\x00\x00\x00ls\x85R."s); });
  expect_error("forbidden global \"builtins.eval\"",
               [] { read("\x80\x04\x8c\x08"s + "builtins\x8c\x04" + "eval\x93."s); });
  expect_error("forbidden global \"torch.FloatStorage\\x00\"",
               [] { read("\x80\x02"s + "ctorch\nFloatStorage\0\n."s); });
}

TEST(Pickle, BrokenOnes) {
  const std::pair<const char*, std::string> cases[] = {
      {"ends too early", ""s},
      {"ends too early", "\x80\x02"s},
      {"does not begin with its protocol", "N."s},
      {"has protocol 0", "\x80\x00N."s},
      {"has protocol 6", "\x80\x06N."s},
      {"takes a value where there is none", "\x80\x02."s},
      {"takes a value where there is none", "\x80\x02(."s},
      {"ends too early", "\x80\x02X\xff\xff\xff\xff"s},
      {"ends too early", "\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff"s},
      {"lacks a mark", "\x80\x02Nt."s},
      {"takes more values than there are", "\x80\x02N\x87."s},
      {"beyond 64 bits", "\x80\x02\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01."s},
      {"recalls value 7", "\x80\x02h\x07."s},
      {"a key without a value", "\x80\x02}(Nu."s},
      {"adds items to something that holds none", "\x80\x02N(NNu."s},
      {"adds items to something that holds none", "\x80\x02}(Ne."s},
      {"calls something that is not a function", "\x80\x02N)R."s},
      {"sets state on something", "\x80\x02]}b."s},
      {"a global without an end", "\x80\x02"s + "c" + std::string(1000, 'x')},
      {"a global without a name", "\x80\x04NN\x93."s},
      {"uses operation 105", "\x80\x02i."s},     // INST
      {"uses operation 129", "\x80\x02\x81."s},  // NEWOBJ
  };
  for (const auto& [part, text] : cases) {
    SCOPED_TRACE(testing::PrintToString(text.substr(0, 40)));
    expect_error(part, [&text = text] { read(text); });
  }
}

TEST(Pickle, BoundedMemory) {
  expect_error("holds too many values", [] { read("\x80\x02" + std::string(3 << 20, 'N') + "."); });
  expect_error("holds too many marks", [] { read("\x80\x02" + std::string(3 << 20, '(') + "."); });
  expect_error("holds too many values", [] { read("\x80\x02" + std::string(3 << 20, ']') + "."); });
  std::string lists = "\x80\x02";  // each list small, all together large
  for (int i = 0; i < 300000; ++i) lists += "(NNNNNNNNl0";
  expect_error("holds too many values", [&] { read(lists + "N."); });
}

}  // namespace
}  // namespace mamba3
