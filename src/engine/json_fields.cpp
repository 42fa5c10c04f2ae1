#include "engine/json_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "engine/json_events.h"

namespace mamba3 {
namespace {

using Texts = JsonField::Texts;
using Ids = JsonField::Ids;

// What a field takes, for people.
std::string kind_of(const JsonField& field) {
  struct Names {
    bool or_one;
    std::string operator()(const std::optional<std::string>*) const { return "a string"; }
    std::string operator()(const std::optional<Texts>*) const {
      return or_one ? "a string or a list of strings" : "a list of strings";
    }
    std::string operator()(const std::optional<Ids>*) const {
      return str("a list of whole numbers from 0 to ", kMostId);
    }
    std::string operator()(const std::optional<std::int64_t>*) const { return "a whole number"; }
    std::string operator()(const std::optional<std::uint64_t>*) const {
      return "a whole number from 0 to 2^64 - 1";
    }
    std::string operator()(const std::optional<double>*) const { return "a number"; }
    std::string operator()(const std::optional<bool>*) const { return "true or false"; }
  };
  return std::visit(Names{field.or_one}, field.to);
}

class FieldEvents : public JsonEvents {
 public:
  FieldEvents(const std::string& where, const std::string& example,
              std::span<const JsonField> fields)
      : JsonEvents(where), example_(example), fields_(fields) {}

  bool boolean(bool value) { return put(value) || other(); }
  bool number_float(double value, const std::string&) { return put(value) || other(); }
  bool number_integer(std::int64_t value) {
    if (put(value) || put(static_cast<double>(value))) return true;
    auto* const ids = open_list<std::int32_t>();
    if (ids == nullptr || value < 0 || value > kMostId) return other();
    ids->push_back(static_cast<std::int32_t>(value));
    return true;
  }
  bool number_unsigned(std::uint64_t value) {
    if (put(value) || put(static_cast<double>(value))) return true;
    return value > INT64_MAX ? other() : number_integer(static_cast<std::int64_t>(value));
  }
  bool string(std::string& value) {
    if (auto* const text = place<std::string>()) {
      *text = std::move(value);
    } else if (auto* const list = open_list<std::string>()) {
      list->push_back(std::move(value));
    } else if (auto* const texts = place<Texts>(); texts != nullptr && field_->or_one) {
      texts->emplace(1, std::move(value));
    } else {
      return other();
    }
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ > 0) other();
    ++depth_;
    return true;
  }
  bool end_object() { return leave(); }
  bool start_array(std::size_t) {
    in_list_ = put(Ids{}) || put(Texts{});
    if (!in_list_) other();
    ++depth_;
    return true;
  }
  bool end_array() { return leave(); }
  bool key(std::string& name) {
    if (depth_ != 1) return true;
    const auto found = std::find_if(fields_.begin(), fields_.end(),
                                    [&](const JsonField& field) { return field.key == name; });
    field_ = found == fields_.end() ? nullptr : &*found;
    return true;
  }

 protected:
  // A value that the key before it does not take; keys that are not ours take anything.
  bool other() override {
    if (depth_ == 0) refuse("is not an object", example_);
    if (field_ == nullptr) return true;
    refuse("has a \"" + std::string(field_->key) + "\" of the wrong kind", kind_of(*field_));
  }

 private:
  // Where a value goes, when the key before it takes this type; else null.
  template <class T>
  std::optional<T>* place() const {
    if (depth_ != 1 || field_ == nullptr) return nullptr;
    const auto* const to = std::get_if<std::optional<T>*>(&field_->to);
    return to == nullptr ? nullptr : *to;
  }
  template <class T>
  bool put(T value) {
    std::optional<T>* const to = place<T>();
    if (to != nullptr) *to = std::move(value);
    return to != nullptr;
  }
  // The list that is being read, when it is one of this type.
  template <class T>
  std::vector<T>* open_list() const {
    if (depth_ != 2 || !in_list_) return nullptr;
    const auto* const to = std::get_if<std::optional<std::vector<T>>*>(&field_->to);
    return to == nullptr ? nullptr : &***to;
  }
  bool leave() {
    --depth_;
    if (depth_ == 1) in_list_ = false;
    return true;
  }

  const std::string& example_;
  std::span<const JsonField> fields_;
  const JsonField* field_ = nullptr;  // of the last key; null: none of ours
  bool in_list_ = false;              // that the field takes
  std::int64_t depth_ = 0;
};

}  // namespace

void read_json_fields(std::string_view json, const std::string& where, const std::string& example,
                      std::span<const JsonField> fields) {
  FieldEvents events(where, example, fields);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
}

}  // namespace mamba3
