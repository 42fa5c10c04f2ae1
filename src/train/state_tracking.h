// The state-tracking tasks of Grazzi et al. 2025 (arXiv 2411.12537), section 5.1, whose sequences
// are those of Deletang et al. 2023 as Beck et al. 2024 (xLSTM) generate them: a sequence of
// symbols and one answer, which is the target of the last symbol. Made from counters, so a sequence
// is a function of its number.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba3 {

enum class Task : std::uint8_t {
  kParity,                     // of bits
  kModularArithmetic,          // 3*4-1*0=, modulo 5; * binds before + and -
  kModularArithmeticBrackets,  // ((-2)-(1+3))=, modulo 5: each operation in brackets
};

const char* task_name(Task task);  // "parity", "modular-arithmetic", "modular-arithmetic-brackets"
// An unknown name is refused with the known ones.
Task task_named(const std::string& name);
std::vector<std::string> task_names();

// Each symbol's id is its place in this text.
const std::string& task_symbols(Task task);
// Of right answers by guessing: 1/2, 1/5.
double task_chance(Task task);
// 0 for chance, 100 when all is right; below chance it is negative.
double scaled_accuracy(Task task, double accuracy);

struct TaskSequence {
  std::vector<std::int32_t> ids;
  std::int32_t answer = 0;
};

// Random words by their number.
struct TaskStream {
  std::uint64_t seed = 0;
  std::uint64_t sequence = 0;
};

// A length counts the answer, so one of `length` has length - 1 ids: bits; or an expression and
// "=". Drawn evenly from [shortest, longest], of modular arithmetic from the odd ones (there are
// only such; the longest one counts as odd by leaving one out). Without `multiplication`
// expressions have
// + and - only. shortest is at least 3.
TaskSequence task_sequence(Task task, bool multiplication, std::int64_t shortest,
                           std::int64_t longest, const TaskStream& stream);

}  // namespace mamba3
