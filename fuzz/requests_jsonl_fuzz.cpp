// JSON lines of requests and test sets, lists of ids in JSON, and ids separated by commas.
#include <cstdlib>
#include <string_view>

#include "../tests/engine/byte_tokenizer.h"
#include "core/check.h"
#include "engine/generate_lines.h"
#include "engine/requests.h"
#include "engine/task.h"

namespace {

constexpr std::int64_t kVocab = 257;

void check(bool ok) {
  if (!ok) std::abort();
}

void check_request(const mamba3::ScoreRequest& request) {
  check(request.first_scored >= 1);
  for (const std::int32_t id : request.ids) check(id >= 0 && id < kVocab);
}

template <class Parse>
void refused_or(Parse&& parse) {
  try {
    parse();
  } catch (const mamba3::Error& error) {
    check(error.code() == mamba3::ErrorCode::kBadInput);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const mamba3::ByteTokenizer tokenizer;
  refused_or([&] {
    mamba3::for_each_request(text, "input", [&](const mamba3::RequestLine& line) {
      refused_or([&] { check_request(mamba3::to_score_request(line, &tokenizer, kVocab)); });
      refused_or([&] { mamba3::to_score_request(line, nullptr, kVocab); });
      refused_or([&] {
        const mamba3::TaskItem item = mamba3::to_task_item(line);
        check(!item.pairs.empty() && item.gold >= 0 && item.gold < std::ssize(item.pairs));
        for (const mamba3::TaskPair& pair : item.pairs) {
          check_request(
              mamba3::encode_pair(tokenizer, pair.context, pair.continuation, line.where));
        }
      });
    });
  });
  std::string_view rest = text, line;
  for (std::int64_t number = 0; mamba3::next_line(rest, number, line);) {
    refused_or([&] {
      const mamba3::GenerateRequest request = mamba3::to_generate_request(
          mamba3::parse_generate_line(line, "input"), {}, &tokenizer, kVocab);
      check(request.max_tokens >= 0 && request.sampling.top_k >= 0);
      for (const std::int32_t id : request.prompt_ids) check(id >= 0 && id < kVocab);
    });
  }
  refused_or([&] {
    const mamba3::IdLists ids = mamba3::parse_ids_json(text, "input", kVocab);
    check(!ids.lists.empty() || ids.nested);
  });
  refused_or([&] { mamba3::parse_ids(text, "input", kVocab); });
  return 0;
}
