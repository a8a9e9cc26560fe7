#include <cstdio>
#include <cstring>

#include "config/tell.hpp"

/// caisson-config-doc page|example|schema: the generated documents on standard output.
int main(int argc, char** argv) {
  using namespace caisson::config;
  std::string text;
  if (argc == 2 && std::strcmp(argv[1], "page") == 0)
    text = reference_page();
  else if (argc == 2 && std::strcmp(argv[1], "example") == 0)
    text = example_file();
  else if (argc == 2 && std::strcmp(argv[1], "schema") == 0)
    text = json_schema();
  if (text.empty()) {
    std::fputs("usage: caisson-config-doc page|example|schema\n", stderr);
    return 2;
  }
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0 : 1;
}
