#include "train/run_report.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/check.h"
#include "core/quote.h"
#include "core/rounded.h"
#include "io/atomic_file.h"
#include "io/config_file.h"
#include "io/mapped_file.h"
#include "train/svg_chart.h"

namespace mamba3 {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kMostPoints = 400;       // of a curve: more are not told apart
constexpr std::int64_t kMostEvaluations = 100;  // of the table

// Colours for a light and a dark page; curves are told apart without colours by their order too.
constexpr const char* kStyle = R"(
:root { --paper: #ffffff; --ink: #1f2933; --soft: #616e7c; --rule: #e4e7eb;
  --curve-1: #1769aa; --curve-2: #c2410c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e4e7eb; --soft: #9aa5b1; --rule: #2b333c;
    --curve-1: #63b3ed; --curve-2: #f6ad55; } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; padding: 24px;
  max-width: 1340px; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0 0 20px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
label { margin-right: 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr));
  gap: 20px; margin: 14px 0 20px; }
#over-steps:checked ~ .tokens, #over-tokens:checked ~ .steps { display: none; }
svg { width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); } .axis, .tick { stroke: var(--soft); }
.curve { fill: none; stroke: var(--color); stroke-width: 1.8; stroke-linejoin: round; }
.band { fill: var(--color); opacity: 0.18; stroke: none; } circle { fill: var(--color); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 2px 14px 2px 0; } th { color: var(--soft); font-weight: 400; }
)";

std::string loss_text(double loss) {
  return std::isfinite(loss) ? rounded(loss, 4) + " nats" : "not a number";
}

enum class Over { kSteps, kTokens };

template <class Figure>
double at(const Figure& figure, Over over) {
  return over == Over::kSteps ? static_cast<double>(figure.step) : figure.tokens;
}

// A figure of each step as a smoothed curve with the band that it moves in: at most kMostPoints
// pieces of the steps, one point for each.
ChartCurve smoothed(const std::string& name, const std::vector<StepFigures>& steps, Over over,
                    const std::function<double(const StepFigures&)>& figure) {
  ChartCurve curve;
  curve.name = name;
  const std::int64_t count = std::ssize(steps);
  const std::int64_t pieces = std::min(count, kMostPoints);
  // An average over about a hundredth of the training, that forgets exponentially.
  const double keep = std::exp(-1 / std::max(1.0, static_cast<double>(count) / 100));
  double sum = 0, weight = 0;
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    ChartBand band{0, INFINITY, -INFINITY};
    const std::int64_t end = (piece + 1) * count / pieces;
    for (std::int64_t i = piece * count / pieces; i < end; ++i) {
      const double value = figure(steps[i]);
      if (!std::isfinite(value)) continue;
      sum = keep * sum + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      band.low = std::min(band.low, value);
      band.high = std::max(band.high, value);
    }
    band.x = at(steps[end - 1], over);
    if (weight > 0) curve.points.push_back({band.x, sum / weight});
    curve.band.push_back(band);
  }
  return curve;
}

ChartCurve held_out(const std::string& name, const std::vector<HeldOutFigure>& evaluations,
                    Over over, double HeldOutFigure::*figure) {
  ChartCurve curve;
  curve.name = name;
  curve.color = 2;
  curve.marked = true;
  for (const HeldOutFigure& e : evaluations) curve.points.push_back({at(e, over), e.*figure});
  return curve;
}

std::string charts(const MetricsHistory& history, Over over) {
  const std::string axis = over == Over::kSteps ? "steps" : "tokens";
  const auto curve = [&](const char* name, auto figure) {
    return smoothed(name, history.steps, over, figure);
  };
  Chart loss{axis + "-loss", "Loss, nats per token", axis, {}};
  loss.curves.push_back(curve("training, smoothed", [](auto& s) { return s.loss; }));
  if (!history.evaluations.empty()) {
    loss.curves.push_back(held_out("held out", history.evaluations, over, &HeldOutFigure::loss));
  }
  Chart rate{axis + "-rate", "Learning rate", axis, {}, true, 0};
  rate.curves.push_back({"", 1, {}, {}, false});
  for (const ChartBand& piece : curve("", [](auto& s) { return s.rate; }).band) {
    rate.curves[0].points.push_back({piece.x, piece.high});  // falls and rises slowly: not smoothed
  }
  Chart norm{axis + "-norm", "Norm of the gradients, before clipping", axis, {}, true};
  norm.curves.push_back(curve("", [](auto& s) { return s.norm; }));
  Chart speed{axis + "-speed", "Tokens per second", axis, {}, true};
  speed.curves.push_back(curve("", [](auto& s) { return s.tokens_per_s; }));
  std::string out = "<div class=\"charts " + axis + "\">\n" + svg_chart(loss);
  if (std::ranges::any_of(history.evaluations,
                          [](const auto& e) { return std::isfinite(e.accuracy); })) {
    Chart right{axis + "-right", "Share of right tokens, held out", axis, {}, true, 0};
    right.curves.push_back(held_out("", history.evaluations, over, &HeldOutFigure::accuracy));
    out += svg_chart(right);
  }
  for (const Chart* chart : {&rate, &norm, &speed}) out += svg_chart(*chart);
  return out + "</div>\n";
}

using Rows = std::vector<std::pair<std::string, std::string>>;

Rows result_rows(const MetricsHistory& history) {
  Rows rows;
  const auto& steps = history.steps;
  if (!steps.empty()) {
    rows.emplace_back("steps",
                      str(steps.back().step, ", ", tick_label(steps.back().tokens, 0), " tokens"));
    const ChartCurve loss =
        smoothed("", steps, Over::kSteps, [](const StepFigures& s) { return s.loss; });
    const double last = loss.points.empty() ? NAN : loss.points.back().y;
    rows.emplace_back("loss", loss_text(last) + " (smoothed)");
  }
  const auto& evaluations = history.evaluations;
  if (!evaluations.empty()) {
    const auto best = std::ranges::min_element(evaluations, [](const auto& a, const auto& b) {
      return std::isfinite(a.loss) && !(a.loss >= b.loss);
    });
    rows.emplace_back(
        "held out", str(loss_text(evaluations.back().loss), " after step ", evaluations.back().step,
                        "; best ", loss_text(best->loss), " after step ", best->step));
  }
  return rows;
}

std::string list(const Rows& rows) {
  std::string out;
  for (const auto& [name, value] : rows) {
    out += "<dt>" + xml_text(name) + "</dt><dd>" + xml_text(value) + "</dd>\n";
  }
  return out;
}

std::string evaluation_table(const std::vector<HeldOutFigure>& evaluations) {
  if (evaluations.empty()) return "";
  const std::int64_t count = std::ssize(evaluations);
  std::string out =
      str("<details><summary>", count > kMostEvaluations ? "The last evaluations" : "Evaluations",
          "</summary>\n<table>\n<tr><th>step</th><th>tokens</th><th>held out</th></tr>\n");
  for (std::int64_t i = std::max<std::int64_t>(0, count - kMostEvaluations); i < count; ++i) {
    const HeldOutFigure& e = evaluations[i];
    out += str("<tr><td>", e.step, "</td><td>", rounded(e.tokens, 0), "</td><td>",
               std::isfinite(e.loss) ? rounded(e.loss, 4) : "not a number", "</td></tr>\n");
  }
  return out + "</table>\n</details>\n";
}

std::string names_of(const std::vector<std::string>& paths) {
  std::string out;
  for (const std::string& path : paths) {
    out += (out.empty() ? "" : ", ") + fs::path(path).filename().string();
  }
  return out;
}

std::string model_text(const ModelConfig& config) {
  const std::string kind =
      config.mixer.mimo ? str("MIMO of rank ", config.mixer.rank) : std::string("SISO");
  return str(kind, ", ", tick_label(static_cast<double>(config.parameters()), 0), " parameters, ",
             config.layers, " layers, width ", config.width, ", ", config.heads(), " heads of ",
             config.mixer.head_dim, ", state ", config.mixer.state, ", MLP ", config.mlp_hidden,
             ", vocabulary ", config.vocab);
}

std::string data_text(const TrainRecord& record) {
  if (record.task) {
    return str("generated sequences of ", task_name(record.task->task), ", at most ",
               record.options.length, " long; evaluated at ", record.task->eval_length);
  }
  const TrainData& data = record.data;
  std::string out = names_of(data.files);
  if (!data.held_out.empty()) out += "; held out: " + names_of(data.held_out);
  if (data.held_out_share > 0) {
    out += data.held_out_share < 1 ? str("; ", data.held_out_share * 100, " % held out")
                                   : str("; ", data.held_out_share, " documents held out");
  }
  return out;
}

}  // namespace

ReportFacts report_facts(const std::string& name, const ModelConfig& config,
                         const TrainRecord& record) {
  const TrainOptions& options = record.options;
  ReportFacts facts;
  facts.title = name;
  facts.rows = {
      {"model", model_text(config)},
      {"data", data_text(record)},
      {"training",
       str(options.batch, record.task ? " sequences" : str(" x ", options.length, " tokens"),
           " a step, rate ", options.schedule.peak, " (", schedule_name(options.schedule.kind),
           ", warm-up ", options.schedule.warmup_steps, "), ",
           options.compute == Compute::kBf16 ? "bf16" : "fp32",
           options.carry_states ? ", carried states" : "", ", seed ", options.seed)},
      {"version", record.version},
      {"command", record.command}};
  return facts;
}

std::string report_html(const ReportFacts& facts, const MetricsHistory& history) {
  std::string out =
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n"
      "<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>" +
      xml_text(facts.title) + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<h1>" +
      xml_text(facts.title) + "</h1>\n<dl>\n" + list(result_rows(history)) + list(facts.rows) +
      "</dl>\n";
  for (const auto& [id, what, checked] :
       {std::tuple("over-steps", "over steps", " checked=\"checked\""),
        std::tuple("over-tokens", "over tokens", "")}) {
    out += str("<input type=\"radio\" name=\"over\" id=\"", id, "\"", checked, "/><label for=\"",
               id, "\">", what, "</label>\n");
  }
  return out + charts(history, Over::kSteps) + charts(history, Over::kTokens) +
         evaluation_table(history.evaluations) + "</body>\n</html>\n";
}

void write_report(const fs::path& run, const ReportFacts& facts, const MetricsHistory& history) {
  write_atomically(run / "report.html", report_html(facts, history));
}

void write_report(const fs::path& run) {
  check_input(is_there(run / "metrics.jsonl"), quote(run.string()),
              " has no metrics.jsonl; expected the folder of a training; check the path");
  const std::string name = fs::absolute(run).lexically_normal().filename().string();
  ReportFacts facts{name, {}};
  const auto record = newest_train_record(run);
  if (record && is_there(run / "config.json")) {
    facts = report_facts(name, read_config(run / "config.json"), *record);
  }
  write_report(run, facts, read_metrics(run / "metrics.jsonl"));
}

}  // namespace mamba3
