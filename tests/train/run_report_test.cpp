#include "train/run_report.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "../io/file_test_util.h"
#include "core/check.h"
#include "train/svg_chart.h"

namespace mamba3 {
namespace {

// What is wrong with a text as XML; empty: nothing. As much of XML as a report has: elements,
// attributes in double quotes, the five entities.
std::string wrong_with(const std::string& xml) {
  std::vector<std::string> open;
  const std::regex entity("&(amp|lt|gt|quot|apos);");
  const std::regex tag("<(/?)([A-Za-z][A-Za-z0-9]*)((?: [a-zA-Z0-9:-]+=\"[^\"<]*\")*) ?(/?)>");
  std::string rest = xml;
  if (rest.starts_with("<!DOCTYPE html>\n")) rest = rest.substr(16);
  for (std::size_t at = 0; at < rest.size();) {
    const std::size_t next = std::min(rest.find('<', at), rest.size());
    std::string text = std::regex_replace(rest.substr(at, next - at), entity, "");
    if (text.find('&') != std::string::npos) return "a bare & in: " + text;
    if (next == rest.size()) break;
    const std::size_t end = rest.find('>', next);
    if (end == std::string::npos) return "an open tag";
    std::smatch match;
    const std::string whole = rest.substr(next, end + 1 - next);
    if (!std::regex_match(whole, match, tag)) return "no tag: " + whole;
    text = std::regex_replace(match[3].str(), entity, "");
    if (text.find('&') != std::string::npos) return "a bare & in: " + whole;
    at = end + 1;
    if (match[1].length() > 0) {
      if (open.empty() || open.back() != match[2]) return "no end of anything: " + whole;
      open.pop_back();
    } else if (match[4].length() == 0) {
      open.push_back(match[2]);
    }
  }
  return open.empty() ? "" : "no end of " + open.back();
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

MetricsHistory history_of(int steps, int eval_every) {
  MetricsHistory history;
  for (int i = 1; i <= steps; ++i) {
    const double loss = 3 + 6 * std::exp(-i / 50.0);
    history.add({{"step", i},
                 {"loss", loss},
                 {"rate", 1e-3},
                 {"norm", 0.5},
                 {"tokens", 1000},
                 {"seconds", 0.25}});
    if (i % eval_every == 0) history.add({{"step", i}, {"held_out", loss + 0.1}});
  }
  return history;
}

const ReportFacts kFacts{"run", {{"model", "SISO"}, {"version", "1.0"}}};

TEST(RunReport, ReadsFiguresAsTheyWereWritten) {
  const TempFolder folder;
  const auto path = folder / "metrics.jsonl";
  EXPECT_TRUE(read_metrics(path).steps.empty());
  {
    MetricsFile file(path, 0);
    file.write(
        {{"step", 1}, {"loss", 9.5}, {"rate", 0.1}, {"norm", 2}, {"tokens", 64}, {"seconds", 0.5}});
    file.write({{"step", 1}, {"held_out", 9.25}});
    file.write({{"step", 2},
                {"loss", NAN},
                {"rate", 0.2},
                {"norm", INFINITY},
                {"tokens", 36},
                {"seconds", 0.0}});
    file.write({{"step", 2}, {"held_out", NAN}});
    EXPECT_EQ(file.history().steps.size(), 2u);
  }
  write_text(path, read_text(path) + "\n[]\n{\"step\": 1e300}\n{\"step\": \"x\", \"loss\": 1}\n" +
                       std::string(1000, '[') + "\n{\"step\": 3, \"loss\": \"x\"}\n{\"step\": 4,");
  for (const MetricsHistory& history : {read_metrics(path), MetricsFile(path, 9).history()}) {
    ASSERT_EQ(history.steps.size(), 3u);
    EXPECT_EQ(history.steps[0].loss, 9.5);
    EXPECT_EQ(history.steps[0].tokens_per_s, 128);
    EXPECT_EQ(history.steps[1].tokens, 100);
    EXPECT_TRUE(std::isnan(history.steps[1].loss));
    EXPECT_TRUE(std::isnan(history.steps[1].norm));
    EXPECT_TRUE(std::isnan(history.steps[1].tokens_per_s));
    EXPECT_TRUE(std::isnan(history.steps[2].loss));
    ASSERT_EQ(history.evaluations.size(), 2u);
    EXPECT_EQ(history.evaluations[0].tokens, 64);
    EXPECT_EQ(history.evaluations[0].loss, 9.25);
    EXPECT_TRUE(std::isnan(history.evaluations[1].loss));
  }
}

TEST(RunReport, IsWellFormedAndShowsTheNumbers) {
  const std::string html = report_html(kFacts, history_of(1000, 100));
  EXPECT_EQ(wrong_with(html), "");
  EXPECT_NE(html.find("<dd>1000, 1M tokens</dd>"), std::string::npos);
  EXPECT_NE(html.find("<dd>3.1000 nats after step 1000; best 3.1000 nats after step 1000</dd>"),
            std::string::npos);
  EXPECT_NE(html.find("<tr><td>100</td><td>100000</td><td>3.9120</td></tr>"), std::string::npos);
  EXPECT_NE(html.find("<dt>version</dt><dd>1.0</dd>"), std::string::npos);
  // Four charts over steps and four over tokens, ten evaluations in two of them.
  EXPECT_EQ(count_of(html, "<svg "), 8u);
  EXPECT_EQ(count_of(html, "<circle "), 20u);
  EXPECT_NE(html.find("held out 3.91201 at 100k"), std::string::npos);
  // 1,000 tokens in a quarter of a second.
  EXPECT_NE(html.find(">4k</text>"), std::string::npos);
  // Nothing comes from elsewhere.
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("src="), std::string::npos);
  EXPECT_EQ(html.find("href="), std::string::npos);
}

TEST(RunReport, TakesNothingAndWhatIsNoNumber) {
  MetricsHistory odd;
  for (int i = 1; i <= 5; ++i) {
    odd.add({{"step", i}, {"loss", nullptr}, {"rate", nullptr}, {"norm", nullptr}});
  }
  odd.add({{"step", 5}, {"held_out", nullptr}});
  MetricsHistory one = history_of(1, 1);
  MetricsHistory same;  // equal numbers
  for (int i = 1; i <= 5; ++i) {
    same.add({{"step", 1}, {"loss", 0}, {"rate", 0}, {"norm", 0}, {"tokens", 0}, {"seconds", 1}});
  }
  for (const MetricsHistory& history : {MetricsHistory(), odd, one, same}) {
    const std::string html = report_html(kFacts, history);
    EXPECT_EQ(wrong_with(html), "");
    for (const char* bad : {"nan", "inf", "e+"}) {
      EXPECT_EQ(html.find(bad), std::string::npos) << bad;
    }
    EXPECT_EQ(count_of(html, "<svg "), 8u);
  }
  EXPECT_NE(report_html(kFacts, odd).find("not a number"), std::string::npos);
}

TEST(RunReport, ShowsWhatShareIsRightWhereItIsKnown) {
  MetricsHistory history = history_of(10, 20);
  history.add({{"step", 5}, {"held_out", 2.5}, {"held_out_accuracy", 0.25}});
  history.add({{"step", 10}, {"held_out", 2.25}, {"held_out_accuracy", 0.5}});
  const std::string html = report_html(kFacts, history);
  EXPECT_EQ(wrong_with(html), "");
  EXPECT_EQ(count_of(html, "<svg "), 10u);
  EXPECT_EQ(count_of(html, "> 0.25 at "), 2u);
}

TEST(RunReport, ItsSizeDoesNotGrowWithTheSteps) {
  const std::size_t few = report_html(kFacts, history_of(1000, 1000)).size();
  EXPECT_LT(report_html(kFacts, history_of(100'000, 100'000)).size(), few * 11 / 10);
}

TEST(RunReport, NamesCannotBreakIt) {
  ReportFacts facts{"a<b>&\"c\"\x01\xff", {{"<x>", "</dd>\n\xc3\xa9"}}};
  const std::string html = report_html(facts, {});
  EXPECT_EQ(wrong_with(html), "");
  EXPECT_NE(html.find("<h1>a&lt;b&gt;&amp;&quot;c&quot; \xef\xbf\xbd</h1>"), std::string::npos);
  EXPECT_NE(html.find("<dd>&lt;/dd&gt; \xc3\xa9</dd>"), std::string::npos);
}

TEST(RunReport, OfAFolder) {
  const TempFolder folder;
  expect_error("has no metrics.jsonl", [&] { write_report(folder.path()); });
  write_text(folder / "metrics.jsonl", "{\"step\": 7, \"loss\": 2.5, \"tokens\": 10}\n");
  write_report(folder.path());
  const std::string html = read_text(folder / "report.html");
  EXPECT_EQ(wrong_with(html), "");
  EXPECT_NE(html.find("<dd>7, 10 tokens</dd>"), std::string::npos);
  EXPECT_NE(html.find("<dd>2.5000 nats (smoothed)</dd>"), std::string::npos);
}

TEST(SvgChart, PutsPointsWhereTheyBelong) {
  Chart chart{"id", "title", "steps", {}, true, 0};
  chart.curves.push_back({"curve", 1, {{0, 0}, {50, NAN}, {100, 10}}, {}, true});
  const std::string svg = svg_chart(chart);
  EXPECT_EQ(wrong_with(svg), "");
  // From the corner of the axes to the end of the x axis; above it a margin of a twentieth.
  EXPECT_NE(svg.find("d=\"M62.0 256.0 L626.0 48.4\""), std::string::npos) << svg;
  EXPECT_EQ(count_of(svg, "<circle "), 2u);
}

TEST(SvgChart, WhatIsFarAboveTheRestIsCutOff) {
  Chart chart{"id", "title", "steps", {}, false, 0.1};
  chart.curves.push_back({"", 1, {{1, 1e9}, {20, 4}, {100, 3}}});
  const std::string svg = svg_chart(chart);
  EXPECT_NE(svg.find(">3.2</text>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("clip-path=\"url(#clip-id)\""), std::string::npos);
}

TEST(SvgChart, TicksAreRoundNumbers) {
  EXPECT_EQ(round_ticks(0, 10, 6), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(round_ticks(31, 39, 5), (std::vector<double>{32, 34, 36, 38}));
  EXPECT_EQ(round_ticks(-1, 1, 4), (std::vector<double>{-1, 0, 1}));
  for (const double low : {-1e-9, 0.0, 0.37, 3.4, 1e6}) {
    for (const double width : {1e-6, 0.013, 0.99, 7.0, 1e5, 3e12}) {
      const auto ticks = round_ticks(low, low + width, 6);
      EXPECT_GE(ticks.size(), 2u) << low << " " << width;
      EXPECT_LE(ticks.size(), 6u) << low << " " << width;
      for (const double tick : ticks) {
        EXPECT_GE(tick, low - width * 1e-9);
        EXPECT_LE(tick, low + width * (1 + 1e-9));
      }
    }
  }
  EXPECT_TRUE(round_ticks(1, 1, 5).empty());
  // Numbers that differ by their rounding alone.
  for (const double low : {2.5, 1e9, 1e300, -2.5}) {
    EXPECT_LE(round_ticks(low, std::nextafter(low, INFINITY), 6).size(), 7u) << low;
  }
  EXPECT_TRUE(round_ticks(NAN, 1, 5).empty());
  EXPECT_TRUE(round_ticks(0, INFINITY, 5).empty());
}

TEST(SvgChart, LabelsHaveAsManyDigitsAsTheyNeed) {
  EXPECT_EQ(tick_label(0, 5), "0");
  EXPECT_EQ(tick_label(3.4000000000000004, 0.2), "3.4");
  EXPECT_EQ(tick_label(1500, 500), "1.5k");
  EXPECT_EQ(tick_label(2'000'000, 1'000'000), "2M");
  EXPECT_EQ(tick_label(2.5e9, 5e8), "2.5B");
  EXPECT_EQ(tick_label(0.0003, 0.0001), "0.0003");
  EXPECT_EQ(tick_label(3e-5, 1e-5), "3e-05");
  EXPECT_EQ(tick_label(-20, 10), "-20");
  EXPECT_EQ(tick_label(208'332'800, 0), "208.3M");
}

}  // namespace
}  // namespace mamba3
