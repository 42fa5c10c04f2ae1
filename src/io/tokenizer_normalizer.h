// Normalizers: what happens to text before it is cut into words.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/tokenizer_regex.h"

namespace mamba3 {

class Normalizer {
 public:
  // The "normalizer" of a tokenizer.json; null gives no object. Refuses kinds that it does not
  // know.
  static std::unique_ptr<const Normalizer> parse(const nlohmann::json& spec,
                                                 const std::string& where);
  virtual ~Normalizer() = default;
  // Of well-formed text, which it stays.
  virtual std::string apply(std::string_view text, RegexDeadline& deadline) const = 0;
};

}  // namespace mamba3
