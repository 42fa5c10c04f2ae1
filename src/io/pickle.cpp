#include "io/pickle.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"

namespace mamba3 {
namespace {

// Far above any checkpoint, and small against the memory of a machine that can run one.
constexpr std::size_t kMostBytes = std::size_t{64} << 20;
constexpr std::size_t kMostValues = std::size_t{1} << 20;  // on the stack, in the memo, containers
constexpr std::size_t kMostItems = std::size_t{1} << 21;   // in all containers together
constexpr std::size_t kMostGlobalBytes = 512;

enum Opcode : std::uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersistentId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kEmptyDict = '}',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kList = 'l',
  kEmptyList = ']',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProtocol = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

class PickleMachine {
 public:
  PickleMachine(std::span<const std::byte> bytes, std::span<const std::string_view> allowed,
                const std::string& origin)
      : bytes_(bytes), allowed_(allowed), origin_(origin) {}

  Pickle run() {
    if (bytes_.size() > kMostBytes) refuse(str("has ", bytes_.size(), " bytes, too many"));
    if (take<std::uint8_t>() != kProtocol) refuse("does not begin with its protocol");
    const auto protocol = take<std::uint8_t>();
    if (protocol < 2 || protocol > 5) refuse(str("has protocol ", int{protocol}));
    for (auto op = take<std::uint8_t>(); op != kStop; op = take<std::uint8_t>()) {
      const bool known = scalar(op) || text(op) || memo(op) || stack(op) || tuple(op) ||
                         container(op) || object(op);
      if (!known) refuse(str("uses operation ", int{op}, ", which no checkpoint needs"));
      if (stack_.size() > kMostValues || memo_.size() > kMostValues ||
          out_.containers.size() > kMostValues || items_ > kMostItems) {
        refuse("holds too many values");
      }
    }
    out_.root = pop();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& found) const {
    fail(ErrorCode::kBadInput, origin_, ": its pickle ", found,
         "; expected a dictionary of tensors as torch.save writes it; save the checkpoint again "
         "as a plain state_dict");
  }

  std::span<const std::byte> take_bytes(std::uint64_t count) {
    if (count > bytes_.size() - at_) refuse("ends too early");
    at_ += count;
    return bytes_.subspan(at_ - count, count);
  }
  template <class T>
  T take() {
    return load_le<T>(take_bytes(sizeof(T)), 0);
  }
  std::string_view take_line() {
    const std::string_view rest = text_of(bytes_.subspan(at_)).substr(0, kMostGlobalBytes);
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) refuse("holds a global without an end");
    at_ += end + 1;
    return rest.substr(0, end);
  }

  void push(PickleValue value) { stack_.push_back(value); }
  void push_number(PickleKind kind, std::int64_t number) {
    PickleValue value;
    value.kind = kind;
    value.number = number;
    push(value);
  }
  void push_container(PickleKind kind, std::vector<PickleValue> items) {
    push_number(kind, static_cast<std::int64_t>(out_.containers.size()));
    items_ += items.size();
    out_.containers.push_back(std::move(items));
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleValue pop() {
    if (stack_.size() <= floor()) refuse("takes a value where there is none");
    const PickleValue value = stack_.back();
    stack_.pop_back();
    return value;
  }
  PickleValue& top() {
    if (stack_.size() <= floor()) refuse("uses a value where there is none");
    return stack_.back();
  }
  std::vector<PickleValue> pop_count(std::size_t count) {
    if (stack_.size() - floor() < count) refuse("takes more values than there are");
    std::vector<PickleValue> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  std::vector<PickleValue> pop_to_mark() {
    if (marks_.empty()) refuse("lacks a mark");
    std::vector<PickleValue> items = pop_count(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }

  bool scalar(std::uint8_t op) {
    switch (op) {
      case kNone:
        push({});
        return true;
      case kNewTrue:
      case kNewFalse:
        push_number(PickleKind::kBool, op == kNewTrue);
        return true;
      case kBinInt:
        push_number(PickleKind::kInt, take<std::int32_t>());
        return true;
      case kBinInt1:
        push_number(PickleKind::kInt, take<std::uint8_t>());
        return true;
      case kBinInt2:
        push_number(PickleKind::kInt, take<std::uint16_t>());
        return true;
      case kLong1:
        push_long(take<std::uint8_t>());
        return true;
      case kLong4:
        push_long(take<std::uint32_t>());
        return true;
      case kBinFloat: {
        PickleValue value;
        value.kind = PickleKind::kFloat;
        value.real = std::bit_cast<double>(__builtin_bswap64(take<std::uint64_t>()));
        push(value);
        return true;
      }
      default:
        return false;
    }
  }

  // Two's complement, least byte first.
  void push_long(std::uint64_t count) {
    if (count > 8) refuse("holds an integer beyond 64 bits");
    const std::span<const std::byte> digits = take_bytes(count);
    std::uint64_t number = 0;
    for (std::size_t i = 0; i < count; ++i) {
      number |= std::to_integer<std::uint64_t>(digits[i]) << (8 * i);
    }
    const bool negative = count > 0 && (digits[count - 1] & std::byte{0x80}) != std::byte{0};
    if (negative && count < 8) number |= ~std::uint64_t{0} << (8 * count);
    push_number(PickleKind::kInt, static_cast<std::int64_t>(number));
  }

  void push_text(PickleKind kind, std::uint64_t count) {
    PickleValue value;
    value.kind = kind;
    value.text = text_of(take_bytes(count));
    push(value);
  }

  bool text(std::uint8_t op) {
    switch (op) {
      case kShortBinUnicode:
      case kShortBinString:
        push_text(PickleKind::kText, take<std::uint8_t>());
        return true;
      case kBinUnicode:
      case kBinString:
        push_text(PickleKind::kText, take<std::uint32_t>());
        return true;
      case kBinUnicode8:
        push_text(PickleKind::kText, take<std::uint64_t>());
        return true;
      case kShortBinBytes:
        push_text(PickleKind::kBytes, take<std::uint8_t>());
        return true;
      case kBinBytes:
        push_text(PickleKind::kBytes, take<std::uint32_t>());
        return true;
      case kBinBytes8:
        push_text(PickleKind::kBytes, take<std::uint64_t>());
        return true;
      default:
        return false;
    }
  }

  void recall(std::uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) refuse(str("recalls value ", index, ", which it never kept"));
    push(found->second);
  }

  bool memo(std::uint8_t op) {
    switch (op) {
      case kBinPut:
        memo_[take<std::uint8_t>()] = top();
        return true;
      case kLongBinPut:
        memo_[take<std::uint32_t>()] = top();
        return true;
      case kMemoize:
        memo_[static_cast<std::uint32_t>(memo_.size())] = top();
        return true;
      case kBinGet:
        recall(take<std::uint8_t>());
        return true;
      case kLongBinGet:
        recall(take<std::uint32_t>());
        return true;
      default:
        return false;
    }
  }

  bool stack(std::uint8_t op) {
    switch (op) {
      case kFrame:
        take<std::uint64_t>();
        return true;
      case kMark:
        if (marks_.size() >= kMostValues) refuse("holds too many marks");
        marks_.push_back(stack_.size());
        return true;
      case kPop:
        pop();
        return true;
      case kPopMark:
        pop_to_mark();
        return true;
      case kDup:
        push(PickleValue(top()));
        return true;
      default:
        return false;
    }
  }

  bool tuple(std::uint8_t op) {
    switch (op) {
      case kEmptyTuple:
        push_container(PickleKind::kTuple, {});
        return true;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        push_container(PickleKind::kTuple, pop_count(static_cast<std::size_t>(op - kTuple1) + 1));
        return true;
      case kTuple:
        push_container(PickleKind::kTuple, pop_to_mark());
        return true;
      default:
        return false;
    }
  }

  void extend(PickleKind kind, const std::vector<PickleValue>& items) {
    if (!top().is(kind)) refuse("adds items to something that holds none");
    if (kind == PickleKind::kDict && items.size() % 2 != 0) refuse("holds a key without a value");
    auto& all = out_.containers[static_cast<std::size_t>(top().number)];
    items_ += items.size();
    all.insert(all.end(), items.begin(), items.end());
  }

  bool container(std::uint8_t op) {
    switch (op) {
      case kEmptyList:
        push_container(PickleKind::kList, {});
        return true;
      case kEmptyDict:
        push_container(PickleKind::kDict, {});
        return true;
      case kList:
        push_container(PickleKind::kList, pop_to_mark());
        return true;
      case kDict: {
        const std::vector<PickleValue> items = pop_to_mark();
        push_container(PickleKind::kDict, {});
        extend(PickleKind::kDict, items);
        return true;
      }
      case kAppend:
        extend(PickleKind::kList, pop_count(1));
        return true;
      case kAppends:
        extend(PickleKind::kList, pop_to_mark());
        return true;
      case kSetItem:
        extend(PickleKind::kDict, pop_count(2));
        return true;
      case kSetItems:
        extend(PickleKind::kDict, pop_to_mark());
        return true;
      default:
        return false;
    }
  }

  void push_global(const std::string& name) {
    const auto found = std::find(allowed_.begin(), allowed_.end(), name);
    if (found == allowed_.end()) {
      fail(ErrorCode::kBadInput, origin_, ": its pickle asks for the forbidden global ",
           quote(name),
           "; expected only tensors, their storages and dictionaries; others can run code where "
           "they are unpickled: do not trust the file, or save it again as a plain state_dict");
    }
    push_number(PickleKind::kGlobal, found - allowed_.begin());
  }

  void call() {
    const PickleValue arguments = pop();
    const PickleValue callee = pop();
    if (!callee.is(PickleKind::kGlobal) || !arguments.is(PickleKind::kTuple)) {
      refuse("calls something that is not a function");
    }
    const std::string_view name = allowed_[static_cast<std::size_t>(callee.number)];
    if (name == "collections.OrderedDict" && out_.items(arguments).empty()) {
      push_container(PickleKind::kDict, {});
    } else {
      push_container(PickleKind::kCall, {callee, arguments});
    }
  }

  bool object(std::uint8_t op) {
    switch (op) {
      case kGlobal: {
        const std::string module(take_line());
        push_global(module + "." + std::string(take_line()));
        return true;
      }
      case kStackGlobal: {
        const PickleValue name = pop();
        const PickleValue module = pop();
        if (!name.is(PickleKind::kText) || !module.is(PickleKind::kText) ||
            name.text.size() + module.text.size() > kMostGlobalBytes) {
          refuse("holds a global without a name");
        }
        push_global(std::string(module.text) + "." + std::string(name.text));
        return true;
      }
      case kReduce:
        call();
        return true;
      case kBuild:
        pop();
        if (!top().is(PickleKind::kDict)) refuse("sets state on something other than a dictionary");
        return true;
      case kBinPersistentId:
        push_container(PickleKind::kPersistent, pop_count(1));
        return true;
      default:
        return false;
    }
  }

  std::span<const std::byte> bytes_;
  std::span<const std::string_view> allowed_;
  const std::string& origin_;
  std::size_t at_ = 0;
  std::size_t items_ = 0;
  std::vector<PickleValue> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, PickleValue> memo_;
  Pickle out_;
};

}  // namespace

Pickle read_pickle(std::span<const std::byte> bytes, std::span<const std::string_view> allowed,
                   const std::string& origin) {
  return PickleMachine(bytes, allowed, origin).run();
}

}  // namespace mamba3
