#include "engine/verify.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "core/check.h"
#include "core/tolerance.h"
#include "engine/golden.h"
#include "engine/golden_run.h"
#include "engine/verify_gradients.h"
#include "engine/verify_model.h"

namespace mamba3 {
namespace {

using States = std::vector<Mamba3RefState<double>>;
using Ranges = std::vector<GoldenRange>;

// One way to compute a golden, and what its results may differ by.
struct Path {
  std::string name;
  std::function<GoldenPart(const Ranges&, const States&)> run;
  // Empty for the oracle.
  std::function<GoldenPart(const Ranges&, const States&)> run_naive, run_as_authors;
  double rounding = 0;
  bool packs = false;  // takes all sequences in one call, so that neighbours could matter
};

std::vector<Path> paths_of(const Golden& golden, const VerifyOptions& options, Context& ctx) {
  const bool bf16 = options.dtype == ComputeDType::kBf16;
  const Compute compute = bf16 ? Compute::kBf16 : Compute::kF32;
  const auto plain = [&golden](PlainRounding rounding) {
    return [&golden, rounding](const Ranges& ranges, const States& start) {
      return run_plain<float>(golden, ranges, start, rounding);
    };
  };
  const auto authors = [&golden](AuthorsPath path) {
    return [&golden, path](const Ranges& ranges, const States& start) {
      return run_authors(golden, ranges, start, path);
    };
  };
  Path oracle;
  oracle.name = "oracle";
  oracle.run = [&golden](const Ranges& ranges, const States& start) {
    return run_plain<double>(golden, ranges, start, {});
  };
  Path step;
  step.name = "step";
  step.run = [&golden, compute, &ctx](const Ranges& ranges, const States& start) {
    return run_step(golden, ranges, start, compute, ctx);
  };
  step.run_naive = plain({bf16, false});
  step.run_as_authors = authors(AuthorsPath::kStep);
  step.rounding = bf16 && golden.mixer ? kBf16Rounding : kFloatRounding;
  step.packs = true;
  Path scan;
  scan.name = "scan";
  scan.run = [&golden, compute, &ctx](const Ranges& ranges, const States& start) {
    return run_scan(golden, ranges, start, compute, ctx);
  };
  scan.run_naive = plain({bf16, bf16});
  scan.run_as_authors = authors(AuthorsPath::kPrefill);
  scan.rounding = bf16 ? kBf16Rounding : kFloatRounding;
  scan.packs = true;
  return {oracle, step, scan};
}

// Runs one golden through one path and notes every tensor.
class GoldenVerifier {
 public:
  GoldenVerifier(const Golden& golden, const Path& path, VerifyReport& report)
      : golden_(golden), path_(path), report_(report) {}

  void verify() {
    const States start = states("state0");
    const Parts whole = run(ranges(0, kToEnd), {start, start, start, start});
    note_y("", ranges(0, kToEnd), whole);
    note_states("state1", "", whole);
    if (path_.packs && golden_.sequences() > 1) verify_one_by_one(whole.got, start);
    for (const std::int64_t cut : golden_.cuts) verify_cut(cut, start);
  }

 private:
  static constexpr std::int64_t kToEnd = -1;

  // The path's own result, the plain run's, the authors', and the oracle's: the errors of the two
  // in the middle are measured against the oracle, since a wrong file would make any error look
  // allowed.
  struct Starts {
    States got, naive, authors, exact;
  };
  struct Parts {
    GoldenPart got, naive, authors, exact;
  };

  Parts run(const Ranges& rows, const Starts& start) const {
    Parts out;
    out.got = path_.run(rows, start.got);
    if (!path_.run_naive) return out;
    out.naive = path_.run_naive(rows, start.naive);
    out.authors = path_.run_as_authors(rows, start.authors);
    out.exact = run_plain<double>(golden_, rows, start.exact, {});
    return out;
  }

  // Tokens [from, to) of every sequence.
  Ranges ranges(std::int64_t from, std::int64_t to) const {
    Ranges out;
    for (std::int64_t i = 0; i < golden_.sequences(); ++i) {
      const std::int64_t begin = golden_.bounds[i];
      out.push_back({begin + from, to == kToEnd ? golden_.bounds[i + 1] : begin + to});
    }
    return out;
  }

  States states(const std::string& prefix) const {
    States out;
    for (std::int64_t i = 0; i < golden_.sequences(); ++i) {
      out.push_back(golden_state(golden_, prefix, i));
    }
    return out;
  }

  std::vector<double> expected_y(const Ranges& rows) const {
    const std::vector<double>& all = golden_.at("out.y");
    const std::int64_t width = golden_.out_width();
    std::vector<double> out;
    for (const GoldenRange& range : rows) {
      out.insert(out.end(), all.begin() + range.begin * width, all.begin() + range.end * width);
    }
    return out;
  }

  void note_y(const std::string& suffix, const Ranges& rows, const Parts& parts) {
    note("out.y" + suffix, {parts.got.y, parts.naive.y, parts.authors.y, parts.exact.y},
         expected_y(rows), ErrorMetric::kRelative);
  }

  void note_states(const std::string& prefix, const std::string& suffix, const Parts& parts) {
    using Part = std::vector<double> Mamba3RefState<double>::*;
    constexpr std::pair<const char*, Part> kParts[] = {{".angle", &Mamba3RefState<double>::angle},
                                                       {".ssm", &Mamba3RefState<double>::ssm},
                                                       {".k", &Mamba3RefState<double>::k},
                                                       {".v", &Mamba3RefState<double>::v}};
    const auto joined = [](const States& all, Part part) {
      std::vector<double> out;
      for (const auto& state : all) {
        out.insert(out.end(), (state.*part).begin(), (state.*part).end());
      }
      return out;
    };
    for (const auto& [name, part] : kParts) {
      const bool angle = part == &Mamba3RefState<double>::angle;
      note(str(prefix, name, suffix),
           {joined(parts.got.states, part), joined(parts.naive.states, part),
            joined(parts.authors.states, part), joined(parts.exact.states, part)},
           golden_.at(prefix + name), angle ? ErrorMetric::kCircle : ErrorMetric::kRelative);
    }
  }

  // To the cut, then on from there: the oracle from the file's own state, the others from theirs.
  void verify_cut(std::int64_t cut, const States& start) {
    const std::string name = "cut" + std::to_string(cut);
    const Parts first = run(ranges(0, cut), {start, start, start, start});
    note_states(name, "", first);
    const States middle = path_.run_naive ? first.got.states : states(name);
    const Ranges rest = ranges(cut, kToEnd);
    const Parts second =
        run(rest, {middle, first.naive.states, first.authors.states, first.exact.states});
    const std::string suffix = " after cut " + std::to_string(cut);
    note_y(suffix, rest, second);
    note_states("state1", suffix, second);
  }

  // Each sequence in a call of its own gives the bits that it gave among the others.
  void verify_one_by_one(const GoldenPart& together, const States& start) {
    const Ranges all = ranges(0, kToEnd);
    double worst = 0;
    auto y = together.y.begin();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const GoldenPart alone = path_.run({all[i]}, {start[i]});
      const auto end = y + static_cast<std::int64_t>(alone.y.size());
      worst = std::max(worst, difference(alone.y, {y, end}));
      y = end;
      const auto& a = alone.states[0];
      const auto& b = together.states[i];
      worst = std::max({worst, difference(a.angle, b.angle), difference(a.ssm, b.ssm),
                        difference(a.k, b.k), difference(a.v, b.v)});
    }
    add({golden_.file, label("out.y and state1, one by one against together"), worst, 0, 0,
         worst == 0});
  }

  static double difference(const std::vector<double>& a, const std::vector<double>& b) {
    return largest_error(std::span<const double>(a), std::span<const double>(b),
                         ErrorMetric::kRelative);
  }

  std::string label(const std::string& tensor) const { return tensor + " (" + path_.name + ")"; }

  struct Values {
    std::vector<double> got, naive, authors, exact;
  };

  void note(const std::string& tensor, const Values& values, const std::vector<double>& expected,
            ErrorMetric metric) {
    if (expected.empty() && values.got.empty()) return;
    const auto error = [metric](const std::vector<double>& a, const std::vector<double>& b) {
      return largest_error(std::span<const double>(a), std::span<const double>(b), metric);
    };
    const auto rms = [metric](const std::vector<double>& a, const std::vector<double>& b) {
      return rms_error(std::span<const double>(a), std::span<const double>(b), metric);
    };
    if (!path_.run_naive) {
      const Comparison c = judge(error(values.got, expected), 0, kGoldenRounding);
      return add({golden_.file, label(tensor), c.error, c.naive_error, c.bound, c.ok});
    }
    const Comparison c =
        judge(error(values.got, expected), error(values.naive, values.exact), path_.rounding);
    const double ours = rms(values.got, expected);
    const double authors = rms(values.authors, values.exact);
    add({golden_.file, label(tensor), c.error, c.naive_error, c.bound,
         c.ok && within_authors(ours, authors), ours, authors});
  }

  void add(VerifyCase result) { report_.cases.push_back(std::move(result)); }

  const Golden& golden_;
  const Path& path_;
  VerifyReport& report_;
};

bool is_model_golden(const std::filesystem::path& file) {
  return file.filename() == "golden.safetensors" &&
         std::filesystem::exists(file.parent_path() / "config.json");
}

// Files that a path stands for, in a fixed order.
std::vector<std::filesystem::path> golden_files(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  check_input(fs::exists(path, error), path.string(),
              " does not exist; expected a golden file or a folder of them");
  if (!fs::is_directory(path, error)) return {path};
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.is_directory(error)) {
      if (is_model_golden(entry.path() / "golden.safetensors") &&
          fs::exists(entry.path() / "golden.safetensors")) {
        found.push_back(entry.path() / "golden.safetensors");
      }
    } else if (entry.path().extension() == ".safetensors" &&
               entry.path().filename() != "model.safetensors") {
      found.push_back(entry.path());
    }
  }
  check_input(!error && !found.empty(), path.string(),
              " holds no golden file; expected scan_*.safetensors, mixer_*.safetensors or folders "
              "with golden.safetensors");
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

std::int64_t VerifyReport::failed() const {
  return std::count_if(cases.begin(), cases.end(), [](const VerifyCase& c) { return !c.ok; });
}

VerifyReport verify_goldens(const std::vector<std::filesystem::path>& paths,
                            const VerifyOptions& options, Context& ctx) {
  VerifyReport report;
  for (const std::filesystem::path& path : paths) {
    for (const std::filesystem::path& file : golden_files(path)) {
      if (is_model_golden(file)) {
        verify_model_golden(file, options, report, ctx);
        continue;
      }
      const Golden golden = read_golden(file);
      for (const Path& way : paths_of(golden, options, ctx)) {
        GoldenVerifier(golden, way, report).verify();
      }
      if (options.gradients) verify_gradients(golden, options, ctx, report);
    }
  }
  constexpr double kMost = std::numeric_limits<double>::max();
  for (VerifyCase& c : report.cases) {
    c.max_rel_error = std::min(c.max_rel_error, kMost);
    c.naive_error = std::min(c.naive_error, kMost);
    if (c.rms_error) c.rms_error = std::min(*c.rms_error, kMost);
    if (c.authors_rms_error) c.authors_rms_error = std::min(*c.authors_rms_error, kMost);
  }
  return report;
}

}  // namespace mamba3
