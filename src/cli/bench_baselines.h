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

// Whether this is the card that they were measured on.
bool is_baseline_card(const std::string& device);

}  // namespace mamba3::cli
