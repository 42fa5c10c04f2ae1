// bench: rows, files of results, comparisons, the paper's tables.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "cli/bench_baselines.h"
#include "cli/bench_compare.h"
#include "cli/bench_memory.h"
#include "cli/bench_origin.h"
#include "cli/bench_table_text.h"
#include "cli/program.h"
#include "core/check.h"

namespace mamba3 {
namespace {

using cli::BenchRow;
using cli::Comparison;
using cli::Table6Row;
using cli::Table7Row;
using nlohmann::json;

const char* const kRowKeys[] = {
    "name", "value", "unit", "bytes", "flops", "ceiling", "share_of_ceiling", "baseline", "ratio"};

BenchRow row(const std::string& name, double value, const std::string& unit) {
  BenchRow out;
  out.name = name;
  out.value = value;
  out.unit = unit;
  return out;
}

cli::ResultFile earlier() {
  return {"old.json",
          "Imaginary 9000",
          "abc1234",
          "2026-01-02",
          {row("decode", 100, "tokens/s"), row("scan", 8, "us"),
           row("scan/linear", 40, "% of time"), row("gone", 1, "us")}};
}

std::set<std::string> names_of(const json& document) {
  std::set<std::string> names;
  for (const json& found : document["rows"]) {
    for (const char* key : kRowKeys) EXPECT_TRUE(found.contains(key)) << key;
    names.insert(found["name"]);
  }
  return names;
}

TEST(BenchCompare, LargerIsBetterForRatesAndSmallerForTimes) {
  const Comparison found = cli::compare_results(
      earlier(), {row("scan", 4, "us"), row("decode", 150, "tokens/s"),
                  row("scan/linear", 20, "% of time"), row("new", 3, "us"), row("gone", 1, "ms")});
  ASSERT_EQ(found.rows.size(), 3u);
  EXPECT_EQ(found.rows[0].name, "scan");
  EXPECT_EQ(found.rows[0].before, 8);
  EXPECT_EQ(found.rows[0].now, 4);
  EXPECT_EQ(found.rows[0].ratio, 2);
  EXPECT_EQ(found.rows[1].ratio, 1.5);
  EXPECT_FALSE(found.rows[2].ratio.has_value()) << "a share of the time is neither good nor bad";
  EXPECT_EQ(found.only_before, std::vector<std::string>{"gone (us)"});
  EXPECT_EQ(found.only_now, (std::vector<std::string>{"new (us)", "gone (ms)"}));
}

TEST(BenchCompare, TextAndJsonNameWhatIsMissing) {
  const Comparison found =
      cli::compare_results(earlier(), {row("scan", 4, "us"), row("new", 3, "us")});
  EXPECT_EQ(cli::comparison_text(found),
            "\ncompared with old.json, abc1234, 2026-01-02, Imaginary 9000\n"
            "measured                                           unit          before        now"
            "   ratio\n"
            "scan                                               us                 8          4"
            "       2\n"
            "only before: decode (tokens/s)\n"
            "only before: scan/linear (% of time)\n"
            "only before: gone (us)\n"
            "only now: new (us)\n");
  const json document = cli::comparison_json(found);
  EXPECT_EQ(document["file"], "old.json");
  EXPECT_EQ(document["rows"], json::parse(R"([{"name": "scan", "unit": "us", "before": 8.0,
                                               "now": 4.0, "ratio": 2.0}])"));
  EXPECT_EQ(document["only_before"].size(), 3u);
  EXPECT_EQ(document["only_now"], json({"new (us)"}));
}

TEST(BenchRows, FilesThatAreNoResultsAreRefused) {
  for (const char* text : {"", "[]", "{}", R"({"rows": 3})", R"({"rows": [3]})",
                           R"({"rows": [{"name": "a", "unit": "us"}]})",
                           R"({"rows": [{"name": "a", "unit": "us", "value": "4"}]})"}) {
    EXPECT_THROW(cli::parse_results("results.json", text), Error) << text;
  }
  const cli::ResultFile file = cli::parse_results(
      "results.json",
      R"({"device": "d", "commit": null, "rows": [{"name": "a", "unit": "us", "value": 4}]})");
  EXPECT_EQ(file.device, "d");
  EXPECT_EQ(file.commit, "");
  ASSERT_EQ(file.rows.size(), 1u);
  EXPECT_EQ(file.rows[0].value, 4);
}

TEST(BenchOrigin, TheDriverIsTheFirstVersion) {
  EXPECT_EQ(cli::driver_in("580.159.04\n"), "580.159.04");
  EXPECT_EQ(cli::driver_in("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  "
                           "Release Build\nGCC version:  gcc version 12.2.0\n"),
            "580.159.04");
  EXPECT_EQ(cli::driver_in("no version 7 here"), "");
}

TEST(BenchMemory, CopiesFillMoreThanCachesAndAreBounded) {
  EXPECT_EQ(cli::copies_beyond_caches(std::int64_t{1} << 40), 1);
  EXPECT_EQ(cli::copies_beyond_caches((std::int64_t{256} << 20) - 1), 2);
  EXPECT_EQ(cli::copies_beyond_caches(std::int64_t{256} << 20), 1);
  EXPECT_EQ(cli::copies_beyond_caches(1), 64);
}

TEST(BenchMemory, RandomNumbersFillLargeMemoryWithoutEqualRows) {
  Context ctx(ContextOptions{2, 5, {}});
  cli::BenchMemory memory(ctx);
  constexpr std::int64_t kRows = 9001, kColumns = 1024;  // more than a block
  const TensorView<float, 2> rows = memory.random_rows(kRows, kColumns);
  std::set<std::pair<float, float>> starts;
  double sum = 0, squares = 0;
  for (std::int64_t i = 0; i < kRows; ++i) {
    starts.emplace(rows(i, 0), rows(i, 1));
    for (std::int64_t j = 0; j < kColumns; ++j) {
      ASSERT_GE(rows(i, j), -1.0f);
      ASSERT_LE(rows(i, j), 1.0f);
      sum += rows(i, j);
      squares += double{rows(i, j)} * rows(i, j);
    }
  }
  EXPECT_EQ(std::ssize(starts), kRows);
  EXPECT_NEAR(sum / (kRows * kColumns), 0, 0.01);
  EXPECT_NEAR(squares / (kRows * kColumns), 1.0 / 3, 0.01);
}

TEST(BenchTable, Table6SaysWhatIsNotThereYet) {
  const std::string text = cli::table6_text(
      {{"siso", "fp32", 128, 0.2, 0.19, 0.38, 0.4}, {"mimo", "bf16", 64, {}, {}, {}, 0.137}}, 128);
  EXPECT_NE(text.find("128 sequences"), std::string::npos);
  EXPECT_NE(
      text.find("  siso fp32     128    0.200    0.190    0.380    0.400     2.00     2.00\n"),
      std::string::npos)
      << text;
  EXPECT_NE(
      text.find("  mimo bf16      64  not yet  not yet        -    0.137        -        -\n"),
      std::string::npos)
      << text;
}

TEST(BenchTable, Table7TakesThePaperWhereTheAuthorsAreNotMeasured) {
  Table7Row measured{"siso-1.5b", 2048, 1.0, 10.0, false, 1.99, 18.25, 2.02, 17.57};
  EXPECT_DOUBLE_EQ(*measured.prefill_ratio(), 1.99);
  EXPECT_DOUBLE_EQ(*measured.total_ratio(), 1.825);
  Table7Row paper{"siso-1.5b", 4096, 2.0, 20.0, false, {}, {}, 4.01, 35.11};
  EXPECT_DOUBLE_EQ(*paper.prefill_ratio(), 4.01 / 2);
  EXPECT_DOUBLE_EQ(*paper.total_ratio(), 35.11 / 20);
  Table7Row alone{"tiny", 5, 0.5, 1.0, true, {}, {}, {}, {}};
  EXPECT_FALSE(alone.prefill_ratio().has_value());
  const std::string text = cli::table7_text({measured, paper, alone}, 128, 16);
  EXPECT_NE(text.find("n times the time of a step, measured over whole cycles of 16"),
            std::string::npos);
  EXPECT_NE(
      text.find("  siso-1.5b    2048    1.000    10.00    1.990    18.25     2.02    17.57     1.99"
                "     1.82\n"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("  tiny            5    0.500     1.00        -        -        -        -"
                      "        -        -\n"),
            std::string::npos)
      << text;
  EXPECT_NE(cli::table7_text({alone}, 2, 1).find("all n tokens were decoded"), std::string::npos);
}

TEST(BenchBaselines, AreKnownByTheNamesOfRows) {
  EXPECT_NEAR(*cli::authors_figure("decode/siso-1.5b/bf16/batch=128"), 128 / 7.94e-3, 1e-9);
  EXPECT_EQ(cli::authors_figure("kernels/mimo-1.5b/mamba3_scan/16x4096"), 8030);
  EXPECT_EQ(cli::paper_figure("table7/mimo-1.5b/tokens=16384/prefill+decode"), 151.81);
  EXPECT_FALSE(cli::authors_figure("decode/siso-1.5b/bf16/batch=2").has_value());
  EXPECT_FALSE(cli::paper_figure("").has_value());
  EXPECT_EQ(cli::baselines_for("NVIDIA H100 80GB HBM3"), cli::kAuthorsSource);
  EXPECT_TRUE(cli::baselines_for("NVIDIA H200").starts_with(cli::kAuthorsSource));
  EXPECT_NE(cli::baselines_for("NVIDIA H200"), cli::kAuthorsSource);
  EXPECT_EQ(cli::baselines_for("NVIDIA A100-SXM4-80GB"), "");
  EXPECT_EQ(cli::baselines_for("AMD EPYC, 2 threads"), "");
}

std::vector<std::string> bench(std::vector<std::string> more) {
  std::vector<std::string> arguments{
      "bench", "-m", tiny_model("mimo"), "--device", "cpu", "--repeat", "1", "-q"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Bench, LoadHasTheRowsOfTheContract) {
  TestFolder folder;
  const Outcome outcome = run_mamba3(bench({"load", "--json", "--out", folder / "rows.json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  EXPECT_TRUE(document["device"].is_string());
  EXPECT_EQ(names_of(document).size(), 2u);
  for (const json& found : document["rows"]) EXPECT_GT(found["value"], 0.0);
  EXPECT_EQ(json::parse(read_file(folder / "rows.json")), document);
}

TEST(Bench, ModelsAreMeasuredInEveryCombination) {
  TestFolder folder;
  const Outcome outcome =
      run_mamba3(bench({"decode", "prefill", "--batch", "1,3", "--tokens", "2,67", "--cycle", "4",
                        "--dtype", "fp32", "--json", "--out", folder / "rows.json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  const std::set<std::string> names = names_of(document);
  for (const char* name : {"decode/mimo/fp32/batch=1", "decode/mimo/fp32/batch=3",
                           "decode/mimo/fp32/batch=3/mamba3_step", "prefill/mimo/fp32/tokens=2",
                           "prefill/mimo/fp32/tokens=67", "prefill/mimo/fp32/batch=3/tokens=67"}) {
    EXPECT_EQ(names.count(name), 1u) << name;
  }
  EXPECT_EQ(document["command"].get<std::string>().rfind("mamba3 bench -m ", 0), 0u);
  EXPECT_EQ(document["command"].get<std::string>().find("rows.json"), std::string::npos);
  EXPECT_FALSE(document["commit"].get<std::string>().empty());
  EXPECT_EQ(document["date"].get<std::string>().size(), 10u);
  EXPECT_FALSE(document.contains("driver"));
  EXPECT_FALSE(document.contains("baselines")) << "the authors measured another device";
}

TEST(Bench, ASkewedPackIsHeldAgainstAnEvenOne) {
  const Outcome outcome = run_mamba3(bench(
      {"prefill", "--skewed", "--batch", "3", "--tokens", "200", "--dtype", "fp32", "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  const std::string name = "prefill/mimo/fp32/skew=200+2x128";
  EXPECT_EQ(names_of(document), (std::set<std::string>{name, name + "/evenly divided",
                                                       name + "/time over evenly divided"}));
  const auto value = [&](int i) { return document["rows"][i]["value"].get<double>(); };
  EXPECT_NEAR(value(2), value(1) / value(0), 1e-9 * value(2));
}

TEST(Bench, ComparesWithAnEarlierFile) {
  TestFolder folder;
  ASSERT_EQ(run_mamba3(bench({"decode", "--batch", "1,2", "--out", folder / "old.json"})).code, 0);
  const auto with_old = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"decode", "--batch", "2,3", "--compare", folder / "old.json"});
    return run_mamba3(bench(std::move(more)));
  };
  const Outcome text = with_old({});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("\ncompared with " + folder / "old.json"), std::string::npos);
  EXPECT_NE(text.out.find("only before: decode/mimo/fp32/batch=1 (tokens/s)\n"), std::string::npos);
  EXPECT_NE(text.out.find("only now: decode/mimo/fp32/batch=3 (tokens/s)\n"), std::string::npos);
  const json compared = with_old({"--json"}).json()["compare"];
  EXPECT_EQ(compared["rows"][0]["name"], "decode/mimo/fp32/batch=2");
  EXPECT_GT(compared["rows"][0]["ratio"], 0.0);
  write_file(folder / "bad.json", "{}");
  expect_error(run_mamba3(bench({"decode", "--compare", folder / "bad.json"})), 1, "list of rows");
  expect_error(run_mamba3(bench({"decode", "--compare", folder / "no.json"})), 1, "no.json");
}

TEST(Bench, TablesOfAModelOfOnesOwn) {
  const Outcome text = run_mamba3(bench({"table", "--batch", "2", "--tokens", "3,5", "--full"}));
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("Table 7: "), std::string::npos);
  EXPECT_NE(text.out.find("all n tokens were decoded"), std::string::npos);
  EXPECT_EQ(text.out.find("Table 6: "), std::string::npos) << "that is of the 1.5B models";
  const Outcome rows =
      run_mamba3(bench({"table", "--batch", "2", "--tokens", "3", "--cycle", "2", "--json"}));
  const json document = rows.json();
  EXPECT_EQ(
      names_of(document),
      (std::set<std::string>{"table7/mimo/batch=2/step", "table7/mimo/batch=2/tokens=3/prefill",
                             "table7/mimo/batch=2/tokens=3/prefill+decode"}));
  const auto value = [&](int i) { return document["rows"][i]["value"].get<double>(); };
  EXPECT_DOUBLE_EQ(value(2), value(1) + 3 * value(0));
  // In full it is a time of its own, of a prompt and of every token.
  const json full =
      run_mamba3(bench({"table", "--batch", "2", "--tokens", "40", "--full", "--json"})).json();
  const auto of = [&](int i) { return full["rows"][i]["value"].get<double>(); };
  EXPECT_GT(of(2), 20 * of(0));
  EXPECT_NE(of(2), of(1) + 40 * of(0));
}

TEST(Bench, KernelsHaveARowForEachOp) {
  const Outcome outcome =
      run_mamba3({"bench", "kernels", "--preset", "mimo-187m", "--device", "cpu", "--tokens", "3",
                  "--batch", "2", "--repeat", "1", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  const std::set<std::string> names = names_of(document);
  for (const char* name :
       {"ceiling/read", "ceiling/write", "ceiling/copy", "ceiling/update",
        "kernels/mimo-187m/linear/in_proj/rows=2", "kernels/mimo-187m/linear/head/rows=2",
        "kernels/mimo-187m/linear/fc2/rows=3", "kernels/mimo-187m/rms_norm/rows=3",
        "kernels/mimo-187m/swiglu/rows=3", "kernels/mimo-187m/embedding/rows=3",
        "kernels/mimo-187m/mamba3_scan/1x3", "kernels/mimo-187m/mamba3_step/batch=2"}) {
    EXPECT_EQ(names.count(name), 1u) << name;
  }
  for (const json& found : document["rows"]) {
    EXPECT_GT(found["value"], 0.0) << found["name"];
    if (found["unit"] != "us") continue;
    EXPECT_GT(found["share_of_ceiling"], 0.0) << found["name"];
  }
}

TEST(Bench, ATrainingHasItsScanBesideIt) {
  const Outcome outcome =
      run_mamba3({"bench", "train", "--preset", "siso-24m", "--device", "cpu", "--dtype", "fp32",
                  "--batch", "1", "--tokens", "3", "--repeat", "1", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  std::map<std::string, json> rows;
  for (const json& found : document["rows"]) rows[found["name"]] = found;
  EXPECT_EQ(rows.at("train/siso-24m/fp32/batch=1/tokens=3/pass")["unit"], "tokens/s");
  const json& scan = rows.at("train/siso-24m/fp32/scan, forward and backward/1x2048");
  EXPECT_EQ(scan["unit"], "ms");
  EXPECT_GT(scan["share_of_ceiling"], 0.0);
  EXPECT_LT(scan["share_of_ceiling"], 1.0);
  EXPECT_EQ(cli::authors_figure("train/mimo-1.5b/bf16/scan, forward and backward/8x2048"), 17.8);
}

TEST(Bench, RefusesACycleOfNothing) {
  expect_error(run_mamba3(bench({"decode", "--cycle", "0"})), 2, "--cycle");
}

}  // namespace
}  // namespace mamba3
