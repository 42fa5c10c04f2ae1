// Options of a command in a file, and back: `train --run FILE`, and the file that train leaves.
#pragma once

#include <filesystem>

#include "cli/cli11_forward.h"
#include "cli/train.h"

namespace mamba3::cli {

// Gives `app` the options of a file; those that the command line or the environment gave stay. Keys
// are the long names of options, with _ or -. One that is unknown is refused with its line and the
// nearest that is known, a value as its option refuses it.
void apply_run_file(CLI::App& app, const std::filesystem::path& path);

// Writes run.yaml into the folder of a training: the options of `app`, those that decide what is
// computed as the record has them. When it is resumed, what was not given anew comes from the file
// beside its checkpoints.
void write_run_file(const CLI::App& app, const TrainCommand& command, const TrainStart& start);

}  // namespace mamba3::cli
