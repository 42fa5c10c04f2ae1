// What the authors' own package does, and what their paper says, by the names of our rows.
#pragma once

#include <optional>
#include <string>

namespace mamba3::cli {

// Who measured authors_figure() with what; for a results document.
extern const char* const kAuthorsSource;

// The authors' package, measured on one H100 80GB, in the unit of the row of that name.
std::optional<double> authors_figure(const std::string& row_name);

// What the paper's tables 6 and 7 give.
std::optional<double> paper_figure(const std::string& row_name);

// What rows on this device are compared with: kAuthorsSource on the card it names, and on an H200,
// whose processor is the same and whose memory is faster, with a word about that. Empty: nothing.
std::string baselines_for(const std::string& device);

}  // namespace mamba3::cli
