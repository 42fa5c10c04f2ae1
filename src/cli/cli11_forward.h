// Names of CLI11 for headers. Its own header defines objects in every file that reads it, which
// takes seconds to compile: only files that declare options include that.
#pragma once

namespace CLI {
class App;
class Option;
class Validator;
}  // namespace CLI
