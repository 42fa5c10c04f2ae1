// A chart of curves over a common axis, as an SVG element for a page of HTML.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

struct ChartPoint {
  double x = 0, y = 0;
};

// Between the least and the most of what a curve was smoothed from.
struct ChartBand {
  double x = 0, low = 0, high = 0;
};

struct ChartCurve {
  std::string name;                     // of the legend
  int color = 1;                        // the style sheet's --curve-1, ...
  std::vector<ChartPoint> points = {};  // by x; one that is not finite is left out
  std::vector<ChartBand> band = {};     // drawn faintly behind
  bool marked = false;                  // a dot at each point, which shows its numbers
};

struct Chart {
  std::string id;  // of its clip path: unique in the page
  std::string title, x_title;
  std::vector<ChartCurve> curves = {};
  bool from_zero = false;  // the y axis, else from the least of the curves
  // Values before this share of the x axis do not stretch the y axis, and are cut off where it
  // ends: a loss begins far above where it is interesting.
  double ignored_share = 0.05;
};

// Well-formed XML, also of no points at all.
std::string svg_chart(const Chart& chart);

// Multiples of 1, 2 or 5 times a power of ten within [low, high], at most `most` of them, at least
// one where there is room; what is not finite or no interval has none.
std::vector<double> round_ticks(double low, double high, int most);
// "0.5", "1500" as "1.5k", "2M", "3e-04": as many digits as distances of `step` need.
std::string tick_label(double value, double step);

// For text and attributes of XML: well-formed UTF-8, without control characters.
std::string xml_text(std::string_view text);

}  // namespace mamba3
