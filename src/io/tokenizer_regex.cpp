#include "io/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_pattern.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

constexpr std::uint32_t kMostParentheses = 1000;  // our translation nests more than the source
constexpr std::size_t kStackBytes = std::size_t{32} << 10;
constexpr std::size_t kMostStackBytes = std::size_t{64} << 20;
// Steps allowed in one match: Oniguruma's own limit, and enough to backtrack a few times over the
// whole text.
constexpr std::uint64_t kBaseSteps = 10'000'000;
constexpr std::uint64_t kStepsPerByte = 16;
// Time allowed. An ordinary regex takes 0.05 us a byte.
constexpr std::int64_t kBaseTime_us = 2'000'000;
constexpr std::int64_t kTimePerByte_us = 4;

struct CompileContext {
  CompileContext() : context(pcre2_compile_context_create(nullptr)) {
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, kMostParentheses);
  }
  ~CompileContext() { pcre2_compile_context_free(context); }
  CompileContext(const CompileContext&) = delete;
  CompileContext& operator=(const CompileContext&) = delete;
  pcre2_compile_context* context;
};

// What a search needs besides the code: one a thread, shared by all regexes.
struct SearchState {
  SearchState()
      : match(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(kStackBytes, kMostStackBytes, nullptr)) {
    check_input(match != nullptr && context != nullptr, "no memory for a regex search");
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, static_cast<std::uint32_t>(kMostStackBytes >> 10));
  }
  ~SearchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  SearchState(const SearchState&) = delete;
  SearchState& operator=(const SearchState&) = delete;
  pcre2_match_data* match;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

// Called before each part of a regex that scans without steps that the match limit counts.
int stop_when_late(pcre2_callout_block* /*block*/, void* deadline) {
  return static_cast<RegexDeadline*>(deadline)->tick() ? PCRE2_ERROR_CALLOUT : 0;
}

// Not the wall clock: a busy machine must not turn a good text into an error.
std::int64_t thread_time_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000;
}

}  // namespace

RegexDeadline::RegexDeadline(std::size_t text_bytes)
    : end_us_(thread_time_us() + kBaseTime_us +
              kTimePerByte_us * static_cast<std::int64_t>(text_bytes)) {}

bool RegexDeadline::passed() const {
  return thread_time_us() > end_us_;
}

Regex Regex::from_oniguruma(std::string_view pattern, const std::string& origin) {
  // Possessive repeats of the compiler's own making would scan without counted steps.
  return {translate_oniguruma(pattern, origin), PCRE2_NO_AUTO_POSSESS, origin};
}

Regex Regex::from_literal(std::string_view text, const std::string& origin) {
  check_input(!text.empty(), origin, " is empty; expected a string to look for");
  return {text, PCRE2_LITERAL, origin};
}

Regex Regex::from_pcre2(std::string_view pattern, const std::string& origin) {
  return {pattern, PCRE2_NO_AUTO_POSSESS, origin};
}

Regex::Regex(std::string_view pattern, std::uint32_t options, const std::string& origin)
    : origin_(origin) {
  const CompileContext compile;
  if ((options & PCRE2_LITERAL) == 0) options |= PCRE2_UCP;
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options | PCRE2_UTF, &error, &offset, compile.context);
  if (code == nullptr) {
    std::array<unsigned char, 256> reason{};
    pcre2_get_error_message(error, reason.data(), reason.size());
    fail(ErrorCode::kBadInput, origin,
         " cannot be used: ", reinterpret_cast<const char*>(reason.data()), " in ", quote(pattern),
         "; expected a regex as tokenizers writes it");
  }
  code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
  // Without a compiler for this processor PCRE2 interprets: the same result, more slowly.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

bool RegexMatches::next() {
  while (at_ <= text_.size() && search()) {
    if (begin_ != end_ || !matched_ || at_ != begin_) {
      matched_ = true;
      at_ = end_;
      return true;
    }
    // An empty match where the last one ended: look again one character further.
    if (at_ == text_.size()) break;
    matched_ = false;
    next_code_point(text_, at_);
  }
  return false;
}

bool RegexMatches::search() {
  thread_local SearchState state;
  if (deadline_.tick()) refuse_effort();
  pcre2_set_match_limit(state.context,
                        static_cast<std::uint32_t>(std::min<std::uint64_t>(
                            kBaseSteps + kStepsPerByte * (text_.size() - at_), UINT32_MAX)));
  pcre2_set_callout(state.context, stop_when_late, &deadline_);
  const int found = pcre2_match(static_cast<const pcre2_code*>(regex_.code_.get()),
                                reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), at_,
                                PCRE2_NO_UTF_CHECK, state.match, state.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) refuse_effort();
  const std::size_t* ends = pcre2_get_ovector_pointer(state.match);
  begin_ = ends[0];
  end_ = ends[1];
  return true;
}

void RegexMatches::refuse_effort() const {
  fail(ErrorCode::kBadInput, regex_.origin_, " takes too many steps on ", text_.size(),
       " bytes of text; expected a regex that finds the next piece quickly; use another tokenizer "
       "file or cut the text");
}

}  // namespace mamba3
