#include "io/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_file.h"
#include "io/tokenizer_regex.h"
#include "io/tokenizer_split.h"
#include "io/tokenizer_unicode.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

using nlohmann::json;

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// NFC, NFD, NFKC, NFKD.
class UnicodeForm : public Normalizer {
 public:
  UnicodeForm(bool composes, bool is_compatible)
      : options_(UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                 (is_compatible ? UTF8PROC_COMPAT : 0)),
        // Below these, characters stay and join nothing before them.
        first_changing_(composes && !is_compatible ? 0x300 : 0x80) {}

  std::string apply(std::string_view text) const override {
    std::string out;
    out.reserve(text.size());
    std::vector<utf8proc_int32_t> run;  // decomposed; not yet in order
    for (std::size_t at = 0; at < text.size();) {
      const char32_t c = next_code_point(text, at);
      if (c < first_changing_) {
        // It may still join with what follows.
        flush(run, out);
        run.push_back(static_cast<utf8proc_int32_t>(c));
      } else if (is_unknown_to_normalizer(c)) {
        flush(run, out);
        append_utf8(out, c);
      } else {
        decompose(c, run);
      }
    }
    flush(run, out);
    return out;
  }

 private:
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

  std::string apply(std::string_view text) const override {
    std::string out;
    std::size_t done = 0;
    for (RegexMatches match(pattern_, text); match.next();) {
      out += text.substr(done, match.begin() - done);
      out += content_;
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
  std::string apply(std::string_view text) const override {
    return text.empty() ? std::string() : text_ + std::string(text);
  }

 private:
  std::string text_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<const Normalizer>> steps)
      : steps_(std::move(steps)) {}
  std::string apply(std::string_view text) const override {
    std::string out(text);
    for (const auto& step : steps_) out = step->apply(out);
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
  if (type == "Prepend") return std::make_unique<Prepend>(json_string(spec, "prepend", where));
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
