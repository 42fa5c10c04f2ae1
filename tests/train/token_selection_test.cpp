#include "train/token_selection.h"

#include <algorithm>

#include "byte_tokens.h"
#include "train/window_reader.h"

namespace mamba3 {
namespace {

// Document i is its number as often as it says.
std::shared_ptr<const TokenCache> cache_of(const TempFolder& folder, int documents) {
  std::string text;
  for (int i = 0; i < documents; ++i) {
    for (int j = 0; j <= i % 7; ++j) text += std::to_string(i) + ",";
    text += "\n<|endoftext|>\n";
  }
  return cache_of_text(folder, text);
}

std::vector<std::int32_t> ids_of(const TokenSelection& selection) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(selection.tokens()));
  selection.copy(0, ids);
  return ids;
}

// Each with its 256 in front.
std::vector<std::string> documents_of(const TokenSelection& selection) {
  std::vector<std::string> documents;
  for (const std::int32_t id : ids_of(selection)) {
    if (id == 256) {
      documents.emplace_back();
    } else {
      documents.back() += static_cast<char>(id);
    }
  }
  return documents;
}

TEST(TokenSelection, ASplitIsDisjointAndWholeAndKeepsTheOrder) {
  const TempFolder folder;
  const auto cache = cache_of(folder, 200);
  const std::vector<std::string> all = documents_of(TokenSelection(cache));
  ASSERT_EQ(all.size(), 200u);
  for (const auto& [share, expected] :
       {std::pair(0.1, 20u), std::pair(0.5, 100u), std::pair(0.001, 1u), std::pair(1.0, 1u),
        std::pair(13.0, 13u), std::pair(199.0, 199u)}) {
    const HeldOutSplit split = hold_out(cache, share);
    const auto training = documents_of(split.training), held_out = documents_of(split.held_out);
    EXPECT_EQ(held_out.size(), expected) << share;
    std::size_t next_training = 0, next_held_out = 0;
    for (const std::string& document : all) {
      if (next_training < training.size() && training[next_training] == document) {
        ++next_training;
      } else {
        ASSERT_LT(next_held_out, held_out.size());
        EXPECT_EQ(held_out[next_held_out++], document);
      }
    }
    EXPECT_EQ(next_training, training.size());
    EXPECT_EQ(split.training.tokens() + split.held_out.tokens(), cache->tokens());
  }
}

TEST(TokenSelection, ASmallerShareIsPartOfALargerOne) {
  const TempFolder folder;
  const auto cache = cache_of(folder, 100);
  const auto few = documents_of(hold_out(cache, 0.05).held_out);
  const auto many = documents_of(hold_out(cache, 30).held_out);
  for (const std::string& document : few) {
    EXPECT_TRUE(std::ranges::find(many, document) != many.end()) << document;
  }
  EXPECT_EQ(documents_of(hold_out(cache, 0.05).held_out), few);
  // Not the first ones.
  EXPECT_NE(many.back().substr(0, 3), "29,");
}

TEST(TokenSelection, AnyPieceIsAsTheWholeHasIt) {
  const TempFolder folder;
  const TokenSelection part = hold_out(cache_of(folder, 40), 0.4).training;
  const std::vector<std::int32_t> whole = ids_of(part);
  for (std::int64_t begin = 0; begin <= part.tokens(); ++begin) {
    for (const std::int64_t count : {0, 1, 2, 17, 120}) {
      if (begin + count > part.tokens()) continue;
      std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
      part.copy(begin, ids);
      ASSERT_TRUE(std::equal(ids.begin(), ids.end(), whole.begin() + begin)) << begin << count;
    }
  }
  std::vector<std::int32_t> ids(2);
  expect_error("expected tokens of the selection", [&] { part.copy(part.tokens() - 1, ids); });
  expect_error("expected tokens of the selection", [&] { part.copy(-1, ids); });
}

TEST(TokenSelection, AShuffledOneHasTheSameDocuments) {
  const TempFolder folder;
  const auto cache = cache_of(folder, 100);
  for (const TokenSelection& tokens : {TokenSelection(cache), hold_out(cache, 0.4).training}) {
    const auto in_order = documents_of(tokens);
    const auto first = documents_of(tokens.shuffled(1)), second = documents_of(tokens.shuffled(2));
    EXPECT_TRUE(std::ranges::is_permutation(first, in_order));
    EXPECT_TRUE(std::ranges::is_permutation(second, in_order));
    EXPECT_EQ(first, documents_of(tokens.shuffled(1)));
    EXPECT_NE(first, in_order);
    EXPECT_NE(first, second);
  }
  EXPECT_EQ(TokenSelection(cache_of(folder, 0)).shuffled(1).tokens(), 0);
}

TEST(TokenSelection, DocumentsBeginWithTheirFirstToken) {
  const TempFolder folder;
  const auto cache = cache_of(folder, 60);
  for (const TokenSelection& tokens :
       {TokenSelection(cache), hold_out(cache, 0.4).training, TokenSelection(cache).shuffled(3)}) {
    const std::vector<std::int32_t> ids = ids_of(tokens);
    for (std::int64_t begin = 0; begin < tokens.tokens(); begin += 13) {
      for (const std::int64_t count : {0, 1, 20, 300}) {
        const std::int64_t end = std::min(tokens.tokens(), begin + count);
        std::vector<std::int64_t> want;
        for (std::int64_t i = begin; i < end; ++i) {
          if (ids[i] == 256) want.push_back(i);
        }
        EXPECT_EQ(tokens.document_begins(begin, end), want) << begin << " " << end;
      }
    }
  }
}

TEST(TokenSelection, ShareThatLeavesNothingIsRefused) {
  const TempFolder folder;
  const auto cache = cache_of(folder, 3);
  expect_error("3 of 3 documents would be held out", [&] { hold_out(cache, 3); });
  expect_error("expected a fraction", [&] { hold_out(cache, 1.5); });
  expect_error("expected a fraction", [&] { hold_out(cache, 0); });
  expect_error("expected a fraction", [&] { hold_out(cache, -0.5); });
  expect_error("1 of 1 documents", [&] { hold_out(cache_of(folder, 1), 0.01); });
  expect_error("0 documents", [&] { hold_out(cache_of(folder, 0), 0.01); });
  expect_error("at least one window",
               [&] { WindowReader(hold_out(cache, 1).held_out, 64, "what is held out"); });
}

}  // namespace
}  // namespace mamba3
