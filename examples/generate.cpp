// Text from a prompt, printed as it comes:  generate MODEL_FOLDER PROMPT [TOKENS]
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>

#include "mamba3/engine.h"
#include "mamba3/error.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate MODEL_FOLDER PROMPT [TOKENS]\n";
    return 2;
  }
  try {
    mamba3::Context context;  // one thread per processor; give ContextOptions for anything else
    const mamba3::Checkpoint checkpoint = mamba3::load_checkpoint(argv[1], {}, context);
    if (checkpoint.tokenizer == nullptr) {
      std::cerr << "error: the folder has no tokenizer.json; see LoadOptions::tokenizer\n";
      return 1;
    }

    mamba3::GenerateRequest request;
    request.prompt_ids = checkpoint.tokenizer->encode(argv[2], /*add_special=*/true);
    request.max_tokens = argc > 3 ? std::atoll(argv[3]) : 64;
    request.seed = 1;

    mamba3::GenerateHooks hooks;
    hooks.on_text = [](std::int64_t /*sample*/, const std::string& text) {
      std::cout << text << std::flush;
    };
    const mamba3::GenerateResult result = generate(checkpoint, request, hooks, context);
    std::cout << '\n';
    std::cerr << result.decode_tokens << " tokens in " << result.decode_s << " s\n";
  } catch (const mamba3::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {  // memory that ran out
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
