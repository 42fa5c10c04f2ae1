#include "train/state_tracking.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"
#include "core/quote.h"
#include "ops/sampling/philox.h"

namespace mamba3 {
namespace {

constexpr std::int32_t kModulus = 5;

// In the order of Task.
constexpr const char* kNames[] = {"parity", "modular-arithmetic", "modular-arithmetic-brackets"};
const std::string kSymbols[] = {"01", "01234+-*=", "01234+-*=()"};

// A digit's id is its value.
enum Symbol : std::int32_t { kPlus = kModulus, kMinus, kTimes, kEquals, kOpen, kClose };

std::int32_t modulo(std::int32_t value) {
  return (value % kModulus + kModulus) % kModulus;
}

std::int32_t apply(std::int32_t operation, std::int32_t a, std::int32_t b) {
  if (operation == kTimes) return modulo(a * b);
  return modulo(operation == kPlus ? a + b : a - b);
}

class Generator {
 public:
  Generator(bool multiplication, const TaskStream& stream)
      : operations_(multiplication ? 3 : 2), stream_(stream) {}

  std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + below(static_cast<std::uint32_t>(most - least + 1));
  }

  TaskSequence parity(std::int64_t length) {
    for (std::int64_t i = 0; i + 1 < length; ++i) {
      out_.ids.push_back(below(2));
      out_.answer ^= out_.ids.back();
    }
    return std::move(out_);
  }

  // Sums of products, from left to right.
  TaskSequence modular(std::int64_t length) {
    std::int32_t sum = 0, product = digit(), sign = 1;
    for (std::int64_t numbers = 1; numbers < (length - 1) / 2; ++numbers) {
      const std::int32_t next = operation();
      if (next == kTimes) {
        product = modulo(product * digit());
        continue;
      }
      sum = modulo(sum + sign * product);
      sign = next == kPlus ? 1 : -1;
      product = digit();
    }
    return end(modulo(sum + sign * product));
  }

  TaskSequence bracketed(std::int64_t length) { return end(expression(length - 2)); }

 private:
  // Evenly, but for a part of n / 2^32.
  std::int32_t below(std::uint32_t n) {
    const std::uint64_t number = drawn_++;
    if (number % 4 == 0) words_ = random_words(stream_.seed, stream_.sequence, number / 4);
    return static_cast<std::int32_t>(std::uint64_t{words_[number % 4]} * n >> 32);
  }
  std::int32_t put(std::int32_t id) {
    out_.ids.push_back(id);
    return id;
  }
  std::int32_t digit() { return put(below(kModulus)); }
  std::int32_t operation() { return put(kPlus + below(operations_)); }
  TaskSequence end(std::int32_t answer) {
    put(kEquals);
    out_.answer = answer;
    return std::move(out_);
  }

  // One of `length` symbols: below 5 a digit with what there is room for; otherwise two of them,
  // joined and in brackets, the first one's length drawn evenly.
  std::int32_t expression(std::int64_t length) {
    if (length < 5) return terminal(length);
    put(kOpen);
    const std::int64_t first = between(1, length - 4);
    const std::int32_t a = expression(first);
    const std::int32_t joint = operation();
    const std::int32_t b = expression(length - 3 - first);
    put(kClose);
    return apply(joint, a, b);
  }

  std::int32_t terminal(std::int64_t length) {
    const bool brackets = length >= 3, minus = length % 2 == 0;
    if (brackets) put(kOpen);
    if (minus) put(kMinus);
    const std::int32_t value = digit();
    if (brackets) put(kClose);
    return minus ? modulo(-value) : value;
  }

  std::uint32_t operations_;
  TaskStream stream_;
  std::uint64_t drawn_ = 0;
  std::array<std::uint32_t, 4> words_{};
  TaskSequence out_;
};

}  // namespace

const char* task_name(Task task) {
  return kNames[static_cast<int>(task)];
}

Task task_named(const std::string& name) {
  const auto* found = std::ranges::find(kNames, name);
  check_input(found != std::end(kNames), "the task is ", quote(name),
              "; expected parity, modular-arithmetic or modular-arithmetic-brackets");
  return static_cast<Task>(found - std::begin(kNames));
}

std::vector<std::string> task_names() {
  return {std::begin(kNames), std::end(kNames)};
}

const std::string& task_symbols(Task task) {
  return kSymbols[static_cast<int>(task)];
}

double task_chance(Task task) {
  return task == Task::kParity ? 0.5 : 1.0 / kModulus;
}

double scaled_accuracy(Task task, double accuracy) {
  const double chance = task_chance(task);
  return 100 * (accuracy - chance) / (1 - chance);
}

TaskSequence task_sequence(Task task, bool multiplication, std::int64_t shortest,
                           std::int64_t longest, const TaskStream& stream) {
  check_input(shortest >= 3 && shortest <= longest, "a sequence has ", shortest, " to ", longest,
              " symbols and answer; expected 3 or more, and the longest not below the shortest");
  Generator generator(multiplication, stream);
  if (task == Task::kModularArithmetic) {
    return generator.modular(2 * generator.between((shortest + 1) / 2, (longest + 1) / 2) - 1);
  }
  const std::int64_t length = generator.between(shortest, longest);
  return task == Task::kParity ? generator.parity(length) : generator.bracketed(length);
}

}  // namespace mamba3
