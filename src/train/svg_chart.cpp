#include "train/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "core/check.h"
#include "core/rounded.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {
namespace {

constexpr double kWidth = 640, kHeight = 300;
constexpr double kLeft = 62, kRight = 14, kTop = 38, kBottom = 44;

std::string fixed(double value) {
  return rounded(value, 1);
}

bool finite(const ChartPoint& p) {
  return std::isfinite(p.x) && std::isfinite(p.y);
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // So that there is always something to draw on.
  void widen() {
    if (!(low <= high)) low = 0, high = 1;
    if (low == high) high = low + (low == 0 ? 1 : std::abs(low) * 0.1);
  }
};

Range x_range(const Chart& chart) {
  Range range;
  for (const ChartCurve& curve : chart.curves) {
    for (const ChartPoint& p : curve.points) {
      if (finite(p)) range.take(p.x);
    }
  }
  if (range.low > 0) range.low = 0;
  range.widen();
  return range;
}

Range y_range(const Chart& chart, const Range& x) {
  constexpr double kMargin = 0.05;
  Range range;
  const double from = x.low + chart.ignored_share * (x.high - x.low);
  for (const ChartCurve& curve : chart.curves) {
    for (const ChartPoint& p : curve.points) {
      if (finite(p) && (p.x >= from || &p == &curve.points.back())) range.take(p.y);
    }
  }
  if (chart.from_zero) range.take(0);
  range.widen();
  const double margin = kMargin * (range.high - range.low);
  if (!chart.from_zero || range.low < 0) range.low -= margin;
  range.high += margin;
  return range;
}

class Drawing {
 public:
  explicit Drawing(const Chart& chart)
      : chart_(chart), x_(x_range(chart)), y_(y_range(chart, x_)), clip_("clip-" + chart.id) {}

  std::string draw() {
    out_ =
        str("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", kWidth, " ", kHeight,
            "\" role=\"img\">\n<title>", xml_text(chart_.title), "</title>\n", "<clipPath id=\"",
            xml_text(clip_), "\"><rect x=\"", kLeft, "\" y=\"", kTop, "\" width=\"",
            kWidth - kLeft - kRight, "\" height=\"", kHeight - kTop - kBottom, "\"/></clipPath>\n");
    axes();
    for (const ChartCurve& curve : chart_.curves) draw_curve(curve);
    legend();
    return out_ + "</svg>\n";
  }

 private:
  std::string at_x(double x) const {
    return fixed(kLeft + (x - x_.low) / (x_.high - x_.low) * (kWidth - kLeft - kRight));
  }
  // Far outside, coordinates stay numbers that any reader takes.
  std::string at_y(double y) const {
    const double share = std::clamp((y - y_.low) / (y_.high - y_.low), -2.0, 3.0);
    return fixed(kHeight - kBottom - share * (kHeight - kTop - kBottom));
  }

  void text(const std::string& x, const std::string& y, const char* anchor,
            const std::string& words) {
    out_ += "<text x=\"" + x + "\" y=\"" + y + "\" text-anchor=\"" + anchor + "\">" +
            xml_text(words) + "</text>\n";
  }
  void line(const char* kind, const std::string& x1, const std::string& y1, const std::string& x2,
            const std::string& y2) {
    out_ += str("<line class=\"", kind, "\" x1=\"", x1, "\" y1=\"", y1, "\" x2=\"", x2, "\" y2=\"",
                y2, "\"/>\n");
  }

  void axes() {
    const std::string left = fixed(kLeft), right = fixed(kWidth - kRight);
    const std::string top = fixed(kTop), bottom = fixed(kHeight - kBottom);
    const std::vector<double> ys = round_ticks(y_.low, y_.high, 6);
    for (const double y : ys) {
      line("grid", left, at_y(y), right, at_y(y));
      const double baseline = std::stod(at_y(y)) + 4;
      text(fixed(kLeft - 8), fixed(baseline), "end", tick_label(y, step_of(ys)));
    }
    const std::vector<double> xs = round_ticks(x_.low, x_.high, 7);
    for (const double x : xs) {
      line("tick", at_x(x), bottom, at_x(x), fixed(kHeight - kBottom + 5));
      text(at_x(x), fixed(kHeight - kBottom + 19), "middle", tick_label(x, step_of(xs)));
    }
    line("axis", left, bottom, right, bottom);
    line("axis", left, top, left, bottom);
    text(fixed((kLeft + kWidth - kRight) / 2), fixed(kHeight - 7), "middle", chart_.x_title);
  }

  static double step_of(const std::vector<double>& ticks) {
    return ticks.size() < 2 ? 0 : ticks[1] - ticks[0];
  }

  void draw_curve(const ChartCurve& curve) {
    const std::string style = "style=\"--color: var(--curve-" + std::to_string(curve.color) + ")\"";
    out_ += "<g clip-path=\"url(#" + xml_text(clip_) + ")\" " + style + ">\n";
    draw_band(curve);
    std::string path;
    for (const ChartPoint& p : curve.points) {
      if (finite(p)) path += str(path.empty() ? "M" : " L", at_x(p.x), " ", at_y(p.y));
    }
    if (!path.empty()) out_ += "<path class=\"curve\" d=\"" + path + "\"/>\n";
    for (const ChartPoint& p : curve.points) {
      if (!curve.marked || !finite(p)) continue;
      out_ +=
          str("<circle cx=\"", at_x(p.x), "\" cy=\"", at_y(p.y), "\" r=\"3\"><title>",
              xml_text(curve.name), " ", p.y, " at ", tick_label(p.x, 0), "</title></circle>\n");
    }
    out_ += "</g>\n";
  }

  void draw_band(const ChartCurve& curve) {
    std::string there, back;
    for (const ChartBand& b : curve.band) {
      if (!std::isfinite(b.x) || !std::isfinite(b.low) || !std::isfinite(b.high)) continue;
      there += str(there.empty() ? "M" : " L", at_x(b.x), " ", at_y(b.low));
      back = str(" L", at_x(b.x), " ", at_y(b.high), back);
    }
    if (!there.empty()) out_ += "<path class=\"band\" d=\"" + there + back + " Z\"/>\n";
  }

  void legend() {
    constexpr double kCharacter = 7.2;  // as wide as one is on the average
    text(fixed(kLeft), "20", "start", chart_.title);
    double right = kWidth - kRight;
    for (auto curve = chart_.curves.rbegin(); curve != chart_.curves.rend(); ++curve) {
      if (curve->name.empty()) continue;
      text(fixed(right), "20", "end", curve->name);
      right -= kCharacter * static_cast<double>(curve->name.size()) + 6;
      out_ += str("<line class=\"curve\" style=\"--color: var(--curve-", curve->color, ")\" x1=\"",
                  fixed(right - 18), "\" y1=\"16\" x2=\"", fixed(right), "\" y2=\"16\"/>\n");
      right -= 36;
    }
  }

  const Chart& chart_;
  Range x_, y_;
  std::string clip_;
  std::string out_;
};

}  // namespace

std::string svg_chart(const Chart& chart) {
  return Drawing(chart).draw();
}

std::vector<double> round_ticks(double low, double high, int most) {
  std::vector<double> ticks;
  if (!std::isfinite(low) || !std::isfinite(high) || !(low < high) || most < 1) return ticks;
  const double power = std::pow(10, std::floor(std::log10((high - low) / most)));
  for (const double factor : {1, 2, 5, 10, 20, 50}) {
    const double step = power * factor;
    const double first = std::ceil(low / step), last = std::floor(high / step);
    if (!(step > 0) || last - first + 1 > most) continue;
    // Counted apart: where the range is narrow for its numbers, first + 1 may be first.
    for (int i = 0; i <= last - first; ++i) ticks.push_back((first + i) * step + 0.0);
    return ticks;
  }
  return ticks;
}

std::string tick_label(double value, double step) {
  if (value == 0) return "0";
  const double size = std::max(std::abs(value), std::abs(step));
  char text[64];
  if (size < 1e-3) {
    std::snprintf(text, sizeof(text), "%.3g", value);
    return text;
  }
  const char* suffix = "";
  for (const auto& [unit, name] : {std::pair(1e9, "B"), std::pair(1e6, "M"), std::pair(1e3, "k")}) {
    if (size < unit) continue;
    value /= unit;
    step /= unit;
    suffix = name;
    break;
  }
  if (step == 0) {
    std::snprintf(text, sizeof(text), "%.4g%s", value, suffix);
    return text;
  }
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 9);
  std::snprintf(text, sizeof(text), "%.*f%s", digits, value, suffix);
  return text;
}

std::string xml_text(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Sequence sequence = utf8_sequence(text, at);
    const std::string_view character = text.substr(at, sequence.bytes);
    at += sequence.bytes;
    if (!sequence.well_formed) {
      out += "\uFFFD";
    } else if (character == "&") {
      out += "&amp;";
    } else if (character == "<") {
      out += "&lt;";
    } else if (character == ">") {
      out += "&gt;";
    } else if (character == "\"") {
      out += "&quot;";
    } else {
      out += static_cast<unsigned char>(character[0]) < 0x20 ? " " : character;
    }
  }
  return out;
}

}  // namespace mamba3
