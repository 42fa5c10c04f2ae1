#include "engine/text_stream.h"

#include <gtest/gtest.h>

namespace mamba3 {
namespace {

// Id i adds the i-th piece.
class Pieces : public Tokenizer {
 public:
  explicit Pieces(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}
  std::vector<std::int32_t> encode(std::string_view, bool) const override { return {}; }
  std::string decode(std::span<const std::int32_t>, bool) const override { return {}; }
  std::string token_bytes(std::int32_t id, bool) const override { return pieces_.at(id); }
  std::int64_t vocab() const override { return static_cast<std::int64_t>(pieces_.size()); }
  std::optional<std::int32_t> token_id(std::string_view) const override { return {}; }
  std::optional<std::int32_t> end_of_text() const override { return {}; }

 private:
  std::vector<std::string> pieces_;
};

struct Streamed {
  std::vector<std::string> pushed;
  std::string text;
  bool stopped;
};

Streamed stream_all(const std::vector<std::string>& pieces, const std::vector<std::string>& stop) {
  const Pieces tokenizer(pieces);
  TextStream stream(&tokenizer, stop);
  Streamed out;
  for (std::size_t i = 0; i < pieces.size() && !stream.stopped(); ++i) {
    out.pushed.push_back(stream.push(static_cast<std::int32_t>(i)));
  }
  out.stopped = stream.stopped();
  out.pushed.push_back(stream.finish());
  out.text = stream.text();
  return out;
}

TEST(TextStream, CharactersAreNeverSplit) {
  const Streamed r = stream_all({"a\xf0\x9f", "\x98",
                                 "\x80"
                                 "b",
                                 "\xc3"},
                                {});
  EXPECT_EQ(r.pushed, (std::vector<std::string>{"a", "",
                                                "\xf0\x9f\x98\x80"
                                                "b",
                                                "", "\xef\xbf\xbd"}));
  EXPECT_FALSE(r.stopped);
}

TEST(TextStream, AStopTextIsLeftOutEvenAcrossTokens) {
  const Streamed r = stream_all({"one ", "E", "N", "D two"}, {"END"});
  EXPECT_EQ(r.text, "one ");
  EXPECT_TRUE(r.stopped);
}

TEST(TextStream, WhatLooksLikeAStopTextIsReleasedWhenItIsNone) {
  const Streamed r = stream_all({"E", "N", "EN", "d"}, {"END"});
  EXPECT_EQ(r.text, "ENENd");
  EXPECT_FALSE(r.stopped);
}

TEST(TextStream, TheFirstOfSeveralStopTextsWins) {
  EXPECT_EQ(stream_all({"xx b yy a zz"}, {"a", "b"}).text, "xx ");
}

TEST(TextStream, HeldBackTextComesOutAtTheEnd) {
  const Streamed r = stream_all({"so E", "N"}, {"END"});
  EXPECT_EQ(r.text, "so EN");
}

}  // namespace
}  // namespace mamba3
