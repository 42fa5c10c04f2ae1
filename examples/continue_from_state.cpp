// Reads a text once, keeps the state in a file, and continues from the file as often as wanted:
//   continue_from_state MODEL_FOLDER TEXT MORE_TEXT [TOKENS]
// The state has the same size whatever the length of the text, and reading it back costs no
// computation.
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>

#include "mamba3/engine.h"
#include "mamba3/error.h"

namespace {

void read_and_save(const mamba3::Checkpoint& checkpoint, const std::string& text,
                   const std::filesystem::path& file, mamba3::Context& context) {
  mamba3::GenerateRequest request;
  request.prompt_ids = checkpoint.tokenizer->encode(text, /*add_special=*/true);
  request.max_tokens = 0;  // only read
  generate(checkpoint, request, {}, context).state.save(file);
}

std::string continue_from(const mamba3::Checkpoint& checkpoint, const std::filesystem::path& file,
                          const std::string& text, std::int64_t tokens, mamba3::Context& context) {
  const mamba3::Model& model = *checkpoint.model;
  mamba3::GenerateRequest request;
  // A state of another model, or a damaged one, is refused here.
  request.state = mamba3::SequenceState::load(file, model.config(), model.fingerprint());
  request.prompt_ids = checkpoint.tokenizer->encode(text, /*add_special=*/false);
  request.max_tokens = tokens;
  request.sampling.temperature = 0;
  return generate(checkpoint, request, {}, context).samples[0].text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: continue_from_state MODEL_FOLDER TEXT MORE_TEXT [TOKENS]\n";
    return 2;
  }
  try {
    mamba3::Context context;
    const mamba3::Checkpoint checkpoint = mamba3::load_checkpoint(argv[1], {}, context);
    if (checkpoint.tokenizer == nullptr) {
      std::cerr << "error: the folder has no tokenizer.json; see LoadOptions::tokenizer\n";
      return 1;
    }
    const std::int64_t tokens = argc > 4 ? std::atoll(argv[4]) : 64;
    const std::filesystem::path file = "example.state";
    read_and_save(checkpoint, argv[2], file, context);
    std::cout << continue_from(checkpoint, file, argv[3], tokens, context) << '\n';
  } catch (const mamba3::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {  // memory that ran out
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
