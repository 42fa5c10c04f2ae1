// A line of JSON that holds one object with known fields, read into them. Hostile until checked: an
// error names the place and the field.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mamba3 {

// What a key takes is the type of what it is put into.
struct JsonField {
  using Texts = std::vector<std::string>;
  using Ids = std::vector<std::int32_t>;  // each in [0, 2^31)

  std::string_view key;
  std::variant<std::optional<std::string>*, std::optional<Texts>*, std::optional<Ids>*,
               std::optional<std::int64_t>*, std::optional<std::uint64_t>*, std::optional<double>*,
               std::optional<bool>*>
      to;
  bool or_one = false;  // Texts: a text alone stands for a list of it
};

// Fields that are not there stay empty; others than `fields` may hold anything. `where` is the
// place, `example` an object as it should be.
void read_json_fields(std::string_view json, const std::string& where, const std::string& example,
                      std::span<const JsonField> fields);

}  // namespace mamba3
