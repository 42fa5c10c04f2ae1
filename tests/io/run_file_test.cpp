#include "io/run_file.h"

#include "file_test_util.h"

namespace mamba3 {
namespace {

using Entries = std::vector<RunFileEntry>;

Entries parsed(const std::string& text) {
  return parse_run_file(text, "run.yaml");
}

const Entries kExample{{"data", {"a.txt", "b c.jsonl"}, true},
                       {"rate", {"1e-3"}},
                       {"separator", {""}},
                       {"strict", {"true"}}};

TEST(RunFile, ReadsYaml) {
  const Entries entries = parsed(
      "# a comment\ndata: [a.txt, 'b c.jsonl']\nrate:   1e-3   # here too\nseparator: ''\n"
      "strict: true\n");
  EXPECT_EQ(entries, kExample);
  EXPECT_EQ(entries[0].line, 2);
  EXPECT_EQ(entries[3].line, 5);
  EXPECT_EQ(parsed("data:\n- a.txt\n- b c.jsonl\nrate: '1e-3'\nseparator: \"\"\nstrict: \"true\""),
            kExample);
  EXPECT_EQ(parsed(""), Entries());
  EXPECT_EQ(parsed("# nothing\n"), Entries());
}

TEST(RunFile, ReadsLinesAsWindowsEndsThem) {
  EXPECT_EQ(parsed("a: 1\r\nb:\r\n  - x\r\n"), (Entries{{"a", {"1"}}, {"b", {"x"}, true}}));
}

TEST(RunFile, ReadsJson) {
  EXPECT_EQ(parsed("{\"data\":[\"a.txt\",\"b c.jsonl\"],\"rate\":1e-3,\"separator\":\"\","
                   "\"strict\":true}"),
            kExample);
  const Entries entries = parsed(
      "{\n  \"data\": [\n    \"a.txt\",\n    \"b c.jsonl\"\n  ],\n  \"rate\": 1e-3,\n"
      "  \"separator\": \"\",\n  \"strict\": true\n}\n");
  EXPECT_EQ(entries, kExample);
  EXPECT_EQ(entries[1].line, 6);
  EXPECT_EQ(parsed(R"({"a": "\u00e9\n\"\\\/"})"), (Entries{{"a", {"\u00e9\n\"\\/"}}}));
}

TEST(RunFile, WhatIsWrittenIsReadBack) {
  Entries entries = kExample;
  for (const std::string value :
       {"null", "~",  "# x", "- x", "a: b", "[x", "{", "'",    "\"", "\\",     " x ",
        "a\nb", "\t", "*a",  "&a",  "!x",   "%",  "@", "true", "1",  "\u00e9", "<|endoftext|>"}) {
    entries.push_back({"k" + std::to_string(entries.size()), {value}});
    entries.push_back({"l" + std::to_string(entries.size()), {value, value}, true});
  }
  entries.push_back({"empty", {}, true});
  const std::string text = run_file_text(entries, {"mamba3 1.0: mamba3 train\n-x: 3", "again"});
  EXPECT_EQ(text.substr(0, text.find("data")), "# mamba3 1.0: mamba3 train -x: 3\n# again\n");
  EXPECT_EQ(parsed(text), entries);
}

TEST(RunFile, RefusesWhatNoOptionHasWithTheLine) {
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"a: 1\nb: {c: 1}", "line 2: \"b\" holds other keys"},
           {"a: 1\na: 2", "line 2: \"a\" comes again after line 1"},
           {"a:\nb: 1", "\"a\" has no value"},
           {"a: ~", "\"a\" has no value"},
           {"a: [x, ~]", "\"a\" has no value"},
           {"a: [[1]]", "line 1: a list"},
           {"a: [{b: 1}]", "\"a\" holds other keys"},
           {"- a", "line 1: a list"},
           {"just text", "a single value"},
           {"a: 1\n---\nb: 1", "a second document"},
           {"a: &x 1\nb: *x", "an anchor"},
           {"a: *x", "line 1"},
           {"a: !!binary eA==", "has the tag"},
           {"? [a]\n: 1", "a list stands"},
           {"? {a: 1}\n: 1", "a key is no text"},
           {"~: 1", "a key is missing"},
           {"a: 'x", "line 1"},
           {"a: \"\\q\"", "line 1"},
           {std::string("a: 1\nb: x\0y", 11), "line 2: a control character, byte 0,"},
           {"a: x\x7f", "byte 127"},
           {"a: 1\rb: 2", "byte 13"},
           {"a: [\"\\0\"]", "line 1: a value holds a byte 0"}}) {
    const std::string message = error_of([text = text] { parsed(text); });
    EXPECT_NE(message.find(part), std::string::npos) << text << "\n" << message;
    EXPECT_NE(message.find("run.yaml, line "), std::string::npos) << message;
    EXPECT_NE(message.find("; expected"), std::string::npos) << message;
  }
}

// Nothing grows beyond the text or goes deeper than the reader does.
TEST(RunFile, RefusesHostileFilesAtOnce) {
  std::string bomb = "a: &a [x, x]\n";
  for (char c = 'b'; c < 'z'; ++c) {
    bomb += std::string(1, c) + ": &" + c + " [*" + char(c - 1) + ", *" + char(c - 1) + "]\n";
  }
  const std::size_t many = 100'000;
  for (const std::string& text :
       {bomb, std::string(many, '['), std::string(many, '{'), "a: " + std::string(many, '['),
        "a: " + std::string(many, '{'), std::string(many, '-'), "? " + std::string(many, '['),
        std::string(1 << 20, 'x')}) {
    EXPECT_NE(error_of([&] { parsed(text); }), "") << text.substr(0, 40);
  }
}

TEST(RunFile, OfAFile) {
  const TempFolder folder;
  write_text(folder / "run.yaml", "steps: 3\n");
  EXPECT_EQ(read_run_file(folder / "run.yaml"), (Entries{{"steps", {"3"}}}));
  expect_error("missing", [&] { read_run_file(folder / "missing"); });
}

}  // namespace
}  // namespace mamba3
