// mamba3 COMMAND [options]: finds the command, runs it, and turns whatever it throws into one
// paragraph on stderr and an exit code.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "mamba3/version.h"

namespace mamba3::cli {
namespace {

const std::string kVersionText = str("mamba3 ", kVersion);

struct Command {
  const char* name;
  const char* help;
  Run (*add)(CLI::App&);
};

constexpr Command kCommands[] = {
    {"generate", "continue a prompt, streamed", add_generate},
    {"score", "log-likelihoods of texts, requests and test sets", add_score},
    {"tokenize", "text to ids and back", add_tokenize},
    {"inspect", "what a checkpoint is and what it needs", add_inspect},
    {"convert", "checkpoint files to checkpoint files", add_convert},
    {"init", "a checkpoint of random weights, as the authors initialise", add_init},
    {"train", "train a model from scratch, go on training one", add_train},
    {"verify", "golden files against this machine", add_verify},
    {"bench", "speeds with their ceilings", add_bench},
};

int report(ErrorCode code, const std::string& text) {
  // One paragraph, whatever a library put into its message.
  std::string line = text;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  message("mamba3: error: " + line);
  return static_cast<int>(code);
}

bool mentions(std::string_view text, std::string_view option) {
  for (std::size_t at = text.find(option); at != text.npos; at = text.find(option, at + 1)) {
    const char next = at + option.size() < text.size() ? text[at + option.size()] : ' ';
    if (next != '-' && std::isalnum(static_cast<unsigned char>(next)) == 0) return true;
  }
  return false;
}

bool is_on_command_line(const CLI::Option& option, int argc, char** argv) {
  return std::any_of(argv + 1, argv + argc, [&](std::string_view word) {
    if (!word.starts_with('-')) return false;
    const std::size_t end = word.starts_with("--") ? word.find('=') : 2;  // "--n=1", "-n1"
    return option.check_name(std::string(word.substr(0, end)));
  });
}

// An error about options, with those of them that the command line does not show.
std::string with_environment(const std::string& error, const CLI::App& command, int argc,
                             char** argv) {
  std::string variables;
  for (const CLI::Option* option : command.get_options()) {
    const std::string& variable = option->get_envname();
    // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread of ours changes the environment
    if (variable.empty() || std::getenv(variable.c_str()) == nullptr ||
        is_on_command_line(*option, argc, argv) ||
        !mentions(error, "--" + option->get_lnames().front())) {
      continue;
    }
    variables += str(variables.empty() ? "; the environment has " : ", ", variable);
  }
  return error + variables;
}

int report_usage(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  if (app.get_subcommands().empty()) {
    std::string names;
    for (const Command& command : kCommands) names += str(names.empty() ? "" : ", ", command.name);
    return report(ErrorCode::kUsage, str("no command: ", error.what(), "; expected one of ", names,
                                         "; see mamba3 --help"));
  }
  const CLI::App& command = *app.get_subcommands().front();
  std::string found = error.what();
  if (found.find("; expected") == std::string::npos) {
    found += "; expected the options that the help lists";
  }
  return report(ErrorCode::kUsage, str(with_environment(found, command, argc, argv),
                                       "; see mamba3 ", command.get_name(), " --help"));
}

int guarded(const Run& run) {
  try {
    return run();
  } catch (const ReaderGone&) {
    return 0;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInterrupted) return report(error.code(), error.what());
    message("mamba3: interrupted");
    return static_cast<int>(ErrorCode::kInterrupted);
  } catch (const std::bad_alloc&) {
    return report(ErrorCode::kUnavailable,
                  "memory ran out; expected room for the model, its states and the results; use a "
                  "smaller model or batch, or a machine with more memory");
  } catch (const std::system_error& error) {
    const bool limit = error.code() == std::errc::resource_unavailable_try_again;
    return report(limit ? ErrorCode::kUnavailable : ErrorCode::kBadInput,
                  str("an operation failed (", error.what(), "); expected ",
                      limit ? "room for its threads; lower --threads or lift the limits"
                            : "usable input and files; check the options and paths given"));
  } catch (const std::exception& error) {
    return report(ErrorCode::kBadInput,
                  str("an operation failed (", error.what(),
                      "); expected usable input and files; check the options and paths given"));
  }
}

// Whether the command line begins with this command: another one's options are not in question,
// nor what the environment has for them.
bool is_asked_for(const char* command, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] != '-') return std::string_view(argv[i]) == command;
  }
  return false;
}

int parse_and_run(int argc, char** argv) {
  CLI::App app("Mamba-3 language models: generate, score, convert, train.", "mamba3");
  app.require_subcommand(1);
  app.set_version_flag("--version", kVersionText);
  std::vector<std::pair<CLI::App*, Run>> runs;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    runs.emplace_back(sub, command.add(*sub));
    sub->set_version_flag("--version", kVersionText);
    finish_options(*sub, is_asked_for(command.name, argc, argv));
    sub->footer("Every option is also read from MAMBA3_<OPTION>, as MAMBA3_MODEL; the flag wins.");
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const auto chosen = app.get_subcommands();
    write_out(chosen.empty() ? app.help() : chosen.front()->help("mamba3"));
    return 0;
  } catch (const CLI::CallForVersion&) {
    write_out(kVersionText + "\n");
    return 0;
  } catch (const CLI::ParseError& error) {
    return report_usage(app, error, argc, argv);
  }
  for (const auto& [sub, run] : runs) {
    if (!sub->parsed()) continue;
    try {
      return run();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUsage) throw;
      throw Error(error.code(), with_environment(error.what(), *sub, argc, argv));
    }
  }
  return static_cast<int>(ErrorCode::kUsage);
}

}  // namespace
}  // namespace mamba3::cli

int main(int argc, char** argv) {
  using namespace mamba3::cli;
  keep_standard_streams();
  install_signal_handlers();
  return guarded([&] { return parse_and_run(argc, argv); });
}
