#include "io/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_file.h"
#include "io/tokenizer_split.h"
#include "io/tokenizer_unicode.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

using nlohmann::json;

// A hostile file could have a text grow without end. Compatibility forms make a character at most
// 11 times as long.
constexpr std::size_t kMostGrowth = 16;
constexpr std::size_t kMostAddedBytes = 512;

void check_growth(std::size_t before_bytes, std::size_t after_bytes) {
  check_input(after_bytes <= kMostGrowth * (before_bytes + kMostAddedBytes),
              "the normalizer makes more than ", kMostGrowth, " times as much of ", before_bytes,
              " bytes of text; expected the text in another form; use another tokenizer file");
}

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// NFC, NFD, NFKC, NFKD.
class UnicodeForm : public Normalizer {
 public:
  UnicodeForm(bool composes, bool is_compatible)
      : options_(UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                 (is_compatible ? UTF8PROC_COMPAT : 0)),
        // Characters below join nothing before them, and stay unless something joins them.
        first_changing_(composes && !is_compatible ? 0x300 : 0x80) {}

  std::string apply(std::string_view text, RegexDeadline& /*deadline*/) const override {
    std::string out;
    out.reserve(text.size());
    std::vector<utf8proc_int32_t> run;  // decomposed; not yet in order
    for (std::size_t at = 0; at < text.size();) {
      const char32_t c = next_code_point(text, at);
      const bool unknown = is_unknown_to_normalizer(c);
      if (c < first_changing_ || unknown) flush(run, out);
      if (unknown || (c < first_changing_ && starts_unjoined(text, at))) {
        append_utf8(out, c);
      } else {
        decompose(c, run);
      }
    }
    flush(run, out);
    return out;
  }

 private:
  bool starts_unjoined(std::string_view text, std::size_t at) const {
    return at == text.size() || next_code_point(text, at) < first_changing_;
  }

  void decompose(char32_t c, std::vector<utf8proc_int32_t>& run) const {
    constexpr utf8proc_ssize_t kMostParts = 32;  // U+FDFA has 18
    std::array<utf8proc_int32_t, kMostParts> parts{};
    int unused = 0;
    const auto options = static_cast<utf8proc_option_t>(options_ | UTF8PROC_DECOMPOSE);
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c), parts.data(), kMostParts, options, &unused);
    check_input(count >= 0 && count <= kMostParts, "utf8proc cannot decompose U+", std::hex,
                static_cast<unsigned>(c), "; expected a character; remove it");
    run.insert(run.end(), parts.begin(), parts.begin() + count);
  }

  // Orders the marks, composes if asked to, and appends. utf8proc's own ordering takes quadratic
  // time on a long run of marks.
  void flush(std::vector<utf8proc_int32_t>& run, std::string& out) const {
    if (run.size() > 1) {
      auto at = run.begin();
      while (at != run.end()) {
        const auto marks =
            std::find_if(at, run.end(), [](auto c) { return combining_class(c) != 0; });
        at = std::find_if(marks, run.end(), [](auto c) { return combining_class(c) == 0; });
        std::stable_sort(marks, at,
                         [](auto a, auto b) { return combining_class(a) < combining_class(b); });
      }
      const utf8proc_ssize_t count =
          utf8proc_normalize_utf32(run.data(), static_cast<utf8proc_ssize_t>(run.size()),
                                   static_cast<utf8proc_option_t>(options_));
      run.resize(static_cast<std::size_t>(count));
    }
    for (const utf8proc_int32_t c : run) append_utf8(out, static_cast<char32_t>(c));
    run.clear();
  }

  int options_;
  char32_t first_changing_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  std::string apply(std::string_view text, RegexDeadline& deadline) const override {
    std::string out;
    std::size_t done = 0;
    for (RegexMatches match(pattern_, text, deadline); match.next();) {
      out += text.substr(done, match.begin() - done);
      out += content_;
      check_growth(text.size(), out.size());
      done = match.end();
    }
    return out += text.substr(done);
  }

 private:
  Regex pattern_;
  std::string content_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  std::string apply(std::string_view text, RegexDeadline& /*deadline*/) const override {
    return text.empty() ? std::string() : text_ + std::string(text);
  }

 private:
  std::string text_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<const Normalizer>> steps)
      : steps_(std::move(steps)) {}
  std::string apply(std::string_view text, RegexDeadline& deadline) const override {
    std::string out(text);
    for (const auto& step : steps_) {
      out = step->apply(out, deadline);
      check_growth(text.size(), out.size());
    }
    return out;
  }

 private:
  std::vector<std::unique_ptr<const Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<const Normalizer> Normalizer::parse(const json& spec, const std::string& where) {
  if (spec.is_null()) return nullptr;
  const std::string type = json_string(spec, "type", where);
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    return std::make_unique<UnicodeForm>(type.back() == 'C', type[2] == 'K');
  }
  if (type == "Replace") {
    return std::make_unique<Replace>(parse_split_pattern(spec, where),
                                     json_string(spec, "content", where));
  }
  if (type == "Prepend") {
    const std::string text = json_string(spec, "prepend", where);
    check_input(text.size() <= kMostAddedBytes, where, ".prepend has ", text.size(),
                " bytes; expected at most ", kMostAddedBytes);
    return std::make_unique<Prepend>(text);
  }
  check_input(type == "Sequence", where, ".type is ", quote(type),
              "; expected null, NFC, NFD, NFKC, NFKD, Replace, Prepend or Sequence; other "
              "normalizers are not supported");
  std::vector<std::unique_ptr<const Normalizer>> steps;
  for (const json& part : json_list(spec, "normalizers", where)) {
    steps.push_back(parse(part, where + ".normalizers[" + std::to_string(steps.size()) + "]"));
    check_input(steps.back() != nullptr, where, ".normalizers holds null; expected a normalizer");
  }
  return std::make_unique<NormalizerSequence>(std::move(steps));
}

}  // namespace mamba3
