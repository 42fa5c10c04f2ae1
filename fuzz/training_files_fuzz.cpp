// What a training leaves as text: the record of a checkpoint, and figures as JSON lines.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "core/check.h"
#include "train/run_report.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  mamba3::ReportFacts facts;
  try {
    facts = mamba3::report_facts("input", {}, mamba3::parse_train_record(text, "input"));
  } catch (const mamba3::Error& error) {
    if (error.code() != mamba3::ErrorCode::kBadInput) std::abort();
  }
  std::istringstream lines(text);
  const std::string html = mamba3::report_html(facts, mamba3::read_metrics(lines));
  if (!html.ends_with("</html>\n")) std::abort();
  return 0;
}
