#include "cli/bench_table_text.h"

#include <initializer_list>

#include "cli/bench_baselines.h"
#include "core/check.h"
#include "core/rounded.h"

namespace mamba3::cli {
namespace {

std::string cell(const std::optional<double>& value, int digits, const char* otherwise = "-") {
  return value ? rounded(*value, digits) : otherwise;
}

// The first two cells to the left, numbers to the right.
std::string line(std::initializer_list<std::string> cells) {
  std::string out;
  std::size_t i = 0;
  for (const std::string& text : cells) {
    const std::size_t width = i == 0 ? 10 : i == 1 ? 6 : 8;
    const std::string pad(text.size() < width ? width - text.size() : 0, ' ');
    out += (i == 0 ? "  " : " ") + (i < 1 ? text + pad : pad + text);
    ++i;
  }
  return out + "\n";
}

std::optional<double> over(const std::optional<double>& theirs, const std::optional<double>& paper,
                           double ours) {
  if (theirs) return *theirs / ours;
  if (paper) return *paper / ours;
  return std::nullopt;
}

std::optional<double> ratio(const std::optional<double>& theirs,
                            const std::optional<double>& ours) {
  if (!theirs || !ours) return std::nullopt;
  return *theirs / *ours;
}

}  // namespace

std::optional<double> Table7Row::prefill_ratio() const {
  return over(authors_prefill, paper_prefill, prefill);
}

std::optional<double> Table7Row::total_ratio() const {
  return over(authors_total, paper_total, total);
}

std::string table6_text(const std::vector<Table6Row>& rows, std::int64_t batch) {
  std::string text = str(
      "Table 6: ms of a decode step, ", batch,
      " sequences, width of the 1.5B models, by d_state and the type of the states.\n"
      "layer: in_proj, step, out_proj of one mixer; kernel: the step alone. Ratios: theirs over "
      "ours.\n\n");
  text += line({"", "", "ours", "ours", "authors", "paper", "ratio", "ratio"});
  text += line({"", "state", "layer", "kernel", "kernel", "layer", "kernel", "layer"});
  for (const Table6Row& row : rows) {
    const char* const missing = row.layer || row.kernel ? "-" : "not yet";
    text += line({row.mixer + " " + row.dtype, str(row.state), cell(row.layer, 3, missing),
                  cell(row.kernel, 3, missing), cell(row.authors_kernel, 3),
                  cell(row.paper_layer, 3), cell(ratio(row.authors_kernel, row.kernel), 2),
                  cell(ratio(row.paper_layer, row.layer), 2)});
  }
  return text;
}

std::string table7_text(const std::vector<Table7Row>& rows, std::int64_t batch,
                        std::int64_t cycle_steps) {
  bool all_ran = true;
  for (const Table7Row& row : rows) all_ran = all_ran && row.ran;
  std::string text = str("Table 7: seconds to read n tokens, and to read n and decode n more, ",
                         batch, " sequences.\n");
  text += all_ran
              ? std::string("One run each: all n tokens were decoded, right after the prompts.\n")
              : str("Decoding n tokens is n times the time of a step, measured over whole cycles "
                    "of ",
                    cycle_steps, ".\n");
  text += str("authors: ", kAuthorsSource,
              ";\ntheir totals are n of their measured steps. Ratios: the authors' time over ours, "
              "the paper's where\ntheirs was not measured.\n\n");
  text += line({"", "", "ours", "ours", "authors", "authors", "paper", "paper", "ratio", "ratio"});
  text += line({"", "n", "prefill", "+ decode", "prefill", "+ decode", "prefill", "+ decode",
                "prefill", "+ decode"});
  for (const Table7Row& row : rows) {
    text +=
        line({row.model, str(row.tokens), cell(row.prefill, 3), cell(row.total, 2),
              cell(row.authors_prefill, 3), cell(row.authors_total, 2), cell(row.paper_prefill, 2),
              cell(row.paper_total, 2), cell(row.prefill_ratio(), 2), cell(row.total_ratio(), 2)});
  }
  return text;
}

}  // namespace mamba3::cli
